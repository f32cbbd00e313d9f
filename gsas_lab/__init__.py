"""See, understand and cure the overconfidence of recommenders trained with negative sampling."""

from importlib import import_module as _import_module

from gsas_lab import threads as _threads

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "Interactions": "interactions",
    "load": "interactions",
    "leave_one_out": "splits",
    "SASRec": "encoders",
    "BERT4Rec": "encoders",
    "MF": "baselines",
    "Popularity": "baselines",
    "Settings": "settings",
    "Run": "runs",
    "train": "runs",
    "evaluate": "ranking",
    "diagnose": "diagnosis",
    "diagnose_table": "diagnosis",
    "diagnose_run": "diagnosis",
}
__all__ = list(_HOME)

_threads.wait_passively()


def __getattr__(name: str) -> object:
    # Looked up on first use, so that `gsas_lab.theory` needs no torch (a browser's Python has none).
    if name not in _HOME:
        raise AttributeError(f"module 'gsas_lab' has no attribute '{name}'")
    return getattr(_import_module(f"gsas_lab.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
