"""One experiment as frozen, commented values: the command line, a notebook's parameters, a run's record.

Nothing is computed here; what the values mean is decided where they are used, once.
"""

import ast
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from itertools import takewhile
from typing import Any

import numpy as np

from gsas_lab import parts, splits
from gsas_lab.baselines import MF, Popularity
from gsas_lab.batches import WINDOWS
from gsas_lab.encoders import BLOCKS, BERT4Rec, SASRec
from gsas_lab.errors import InputError
from gsas_lab.losses import LOSSES
from gsas_lab.models import MODELS
from gsas_lab.parts import Registry
from gsas_lab.rows import KINDS
from gsas_lab.samplers import SAMPLERS

OF_DATA = (  # the settings that say what is read and how it is split
    "dataset",
    "min_user",
    "min_item",
    "user",
    "item",
    "time",
    "split",
    "split_at",
    "validation_users",
    "exclude_seen",
)
PRECISIONS = ("float32", "bfloat16")
LOGQ: dict[str, bool | str] = {
    "false": False,
    "none": False,
    "true": True,
    "usual": True,
    "corrected": "corrected",
}
for _name, _model in dict(sasrec=SASRec, bert4rec=BERT4Rec, mf=MF, popularity=Popularity).items():
    MODELS.add(_name, _model)


def _option(default: Any, text: str, choices: Iterable[str] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """One experiment. The defaults are the paper's SASRec; see `recipes` for the others."""

    dataset: str = _option(
        "known-truth",
        "known-truth, known-truth-small, known-truth-million, ml-1m, beauty, video-games, ciao, epinions, or a file",
    )
    min_user: int = _option(1, "drop users with fewer interactions")
    min_item: int = _option(1, "drop items with fewer interactions")
    user: str | None = _option(None, "the file's column of users; none: by the usual names")
    item: str | None = _option(None, "the file's column of items; none: by the usual names")
    time: str | None = _option(
        None, "the file's column of times; none: by the usual names; 'none': the file's order"
    )
    split: str = _option("paper", "what is held out, see splits.py", splits.VARIANTS)
    split_at: str = _option(
        "0.8", "of split time: a date such as 2009-06-01, or the share of interactions before it"
    )
    validation_users: int = _option(512, "users whose second-last item chooses the weights")
    exclude_seen: bool | None = _option(
        None, "leave seen items out of the ranking; none: as the data set's convention"
    )
    model: str = _option("sasrec", "what recommends: see encoders.py and baselines.py", MODELS)
    block: str = _option("paper", "Transformer block, see encoders.py", BLOCKS)
    d: int = _option(128, "width of embeddings and hidden states")
    blocks: int = _option(2, "Transformer blocks")
    heads: int = _option(1, "attention heads")
    max_length: int = _option(200, "longest history that is read")
    dropout: float = _option(0.5, "dropped share, 0…1")
    tied: bool = _option(False, "score with the table that reads items")
    loss: str = _option("bce", "training loss", LOSSES)
    k: int = _option(1, "negatives per positive (sampled losses)")
    t: float = _option(0.0, "calibration of gbce: 0 = BCE, 1 = the true probability")
    sampler: str = _option("positive-excluded", "what a negative is", SAMPLERS)
    power: float = _option(1.0, "popularity to this power (sampler popularity)")
    logq: bool | str = _option(
        False,
        "correct the loss for what the sampler draws: none, usual (log(k q) from each score), or "
        "corrected (negatives alone, RecSys 2025)",
    )
    masked: float = _option(0.2, "share of a window's items that BERT4Rec has to fill in")
    theory_start: bool = _option(
        False, "start a scalar output bias where Theorem 5.1 puts an average item (Transformers)"
    )
    windows: str = _option("last", "train on each user's last window or on all", WINDOWS)
    epochs: int = _option(10_000, "at most so many passes")
    patience: int = _option(200, "epochs without a better validation NDCG@10 before stopping")
    batch_size: int = _option(128, "users (windows) a step")
    lr: float = _option(1e-3, "AdamW's learning rate")
    weight_decay: float = _option(0.0, "AdamW's weight decay")
    table_optimizer: str = _option("auto", "of the items' tables, see rows.py", KINDS)
    warmup: float = _option(0.0, "share of the epochs in which lr rises")
    cooldown: float = _option(0.0, "share of the epochs, at the end, in which lr falls to 0")
    precision: str = _option("float32", "of the encoder's products", PRECISIONS)
    seed: int = _option(1, "of weights, order, negatives and dropout")
    device: str = _option("auto", "where to train", ("auto", "cpu", "cuda", "mps"))

    def __post_init__(self) -> None:
        for item in fields(self):
            value, choices = getattr(self, item.name), item.metadata["choices"]
            if isinstance(value, np.generic | os.PathLike):  # a number of numpy's, a path
                value = value.item() if isinstance(value, np.generic) else os.fspath(value)
                object.__setattr__(self, item.name, value)
            if item.type == bool | None and isinstance(value, str) and value.lower() == "none":
                value = None  # shells, TOML and papermill have no other word for it
                object.__setattr__(self, item.name, value)
            if item.name == "split_at" and type(value) in (int, float, date, datetime):
                value = str(value)  # as TOML, shells and papermill read 0.8 and 2009-06-01
                object.__setattr__(self, item.name, value)
            if item.name == "logq":  # recorded as before there were three
                value = LOGQ.get(str(value).lower(), value)
                object.__setattr__(self, item.name, value)
                if value not in LOGQ.values():
                    raise InputError(f"logq = {value!r}: choose none, usual or corrected.")
            if not _fits(value, item.type):
                raise InputError(
                    f"{item.name} = {value!r} is not of type {_type_name(item.type)}: "
                    f"{item.metadata['help']}."
                )
            if item.type in (int, float) and isinstance(value, int) and abs(value) >= 1 << 63:
                told = value if abs(value) < 10**30 else "a number of over 30 digits"
                raise InputError(
                    f"{item.name} = {told} lies outside [0, 2^63): choose a smaller one."
                )
            if isinstance(choices, Registry):
                choices[value]  # refuses what it does not know
            elif choices and value not in choices:
                raise InputError(f"{item.name} = {value!r}: choose one of {', '.join(choices)}.")
            if item.type is float:  # so that t = 1 and t = 1.0 are one run
                object.__setattr__(self, item.name, float(value))
        ranges: dict[str, tuple[float, float]] = {
            "t": (0, 1),
            "power": (0, math.inf),
            "masked": (0, 1),
            "dropout": (0, 0.99),
            "warmup": (0, 1),
            "cooldown": (0, 1),
            "lr": (0, math.inf),
            "weight_decay": (0, math.inf),
            "seed": (0, 2**63 - 1),  # what numpy, torch and a table's int64 column can all hold
            **{name: (1, math.inf) for name in _AT_LEAST_ONE},
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high or value == math.inf:
                raise InputError(
                    f"{name} = {value} lies outside [{low}, {high}{')' if high == math.inf else ']'}: "
                    f"{self.__dataclass_fields__[name].metadata['help']}."
                )
        if self.lr == 0:
            raise InputError("lr = 0 trains nothing: choose a learning rate above 0.")
        if 0 < self.dropout < 1 / 512:
            raise InputError(
                f"dropout = {self.dropout} is rounded to 0 (it goes by steps of 1/256): choose 0 or "
                "at least 0.002."
            )
        model, loss, sampler = MODELS[self.model], LOSSES[self.loss], SAMPLERS[self.sampler]
        if model.masked and self.max_length < 2:
            raise InputError(
                f"max_length = 1 leaves {model.words} no place for the mask: choose 2 or more."
            )
        if model.by_user and sampler.reads_windows:
            raise InputError(f"model = '{self.model}' reads no windows: choose another sampler.")
        if self.logq and not loss.takes_logq:
            raise InputError(f"loss = '{self.loss}' has nothing to correct: leave logq at False.")
        if self.logq == "corrected" and not loss.takes_weights:
            raise InputError(
                f"loss = '{self.loss}' has no form in which a negative stands for several items: "
                "choose logq = usual."
            )
        if loss.only_uniform and not sampler.uniform:
            raise InputError(
                f"loss = '{self.loss}' is the mean over uniform draws, not over sampler = "
                f"'{self.sampler}': choose positive-excluded or whole-catalogue."
            )

    @property
    def name(self) -> str:
        """The system's name in the paper's words."""
        model = MODELS[self.model]
        if not model.trained:
            return model.words
        told = LOSSES[self.loss].called(model.words, self.k, self.t)
        if self.sampler not in ("positive-excluded", "whole-catalogue"):
            told += f", {self.sampler.replace('-', ' ')} negatives"
        if self.logq == "corrected":
            return f"{told}, corrected logQ"
        return told + (", logQ" if self.logq else "")

    @property
    def own_parts(self) -> dict[str, str]:
        """Of model, loss and sampler those that are not the library's -> hash of their source."""
        return parts.sources(model=self.model, loss=self.loss, sampler=self.sampler)

    @property
    def unread(self) -> set[str]:
        """The settings that make no difference to this system."""
        model, loss, sampler = MODELS[self.model], LOSSES[self.loss], SAMPLERS[self.sampler]
        trained = {item.name for item in fields(self)} - {*DATA, "model", "device"}
        if not model.trained:
            return trained
        unread = set() if model.masked else {"masked"}
        if model.by_user:
            unread |= set("block blocks heads max_length dropout tied windows precision".split())
        unread |= set() if loss.has_start and not model.by_user else {"theory_start"}
        unread |= set() if loss.has_t else {"t"}
        unread |= set() if loss.samples else {"k", "sampler", "power", "logq"}
        unread |= set() if sampler.has_power else {"power"}
        return unread


_AT_LEAST_ONE = (
    "min_user min_item validation_users d blocks heads max_length k epochs patience batch_size"
).split()


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind).replace("None", "none"))


DATA = tuple(item.name for item in takewhile(lambda item: item.name != "model", fields(Settings)))

_DECLARED = "# Parameters of this notebook"  # how a notebook's own parameters cell begins,
_GIVEN = "# Parameters"  # and the cell that papermill puts below it
_PLAIN = (int, float, str, bool, type(None))


def parameters(namespace: Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a notebook's parameters ask for, by name, each of its field's type.

    namespace: globals(). Read is what the parameters cell assigns and then the cell that papermill
    put below it, both known by how they begin, and nothing else: names that the notebook's own code
    uses are no parameters, so the cells may run again in any order. Where no cell is on record (no
    IPython, or a front end that stores no history, as nbval), all plain values of the namespace are
    parameters. also: names of this notebook that are no settings.
    A setting that the parameters cell leaves at None is the recipe's own, and not returned.

    Raises InputError for a name that is neither a setting nor one of `also`, and for a value that no
    run can have: a list, a mapping, a text for a number.
    """
    history = namespace.get("_ih") or []
    given: dict[str, Any]
    if not any(history):
        given = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and isinstance(value, _PLAIN)
        }
        open_names = {name for name, value in given.items() if value is None}
    else:
        given, open_names = _assigned(history, namespace)
    known = {item.name: item.type for item in fields(Settings) if item.name not in also}
    for name, value in given.items():
        if name not in known and name not in also:
            raise InputError(
                f"Unknown parameter '{name}': this notebook knows "
                f"{', '.join(sorted({*also, *known}))}."
            )
        if name in also and not isinstance(value, _PLAIN):
            raise InputError(f"Parameter {name} = {value!r}: give one number or text.")
    asked = {n: v for n, v in given.items() if n in known and not (v is None and n in open_names)}
    settings = Settings(**asked)
    return {name: getattr(settings, name) for name in asked}


def _assigned(
    history: Sequence[str], namespace: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """What the last run of the parameters cell assigns, and the cells of papermill since then; and
    the names that the parameters cell itself leaves at None.
    """
    places = [place for place, cell in enumerate(history) if cell.startswith(_DECLARED)]
    if not places:
        raise InputError(f"Run the cell that begins with '{_DECLARED}' first.")
    given: dict[str, Any] = {}
    open_names: set[str] = set()
    for cell in history[places[-1] :]:
        if not cell.startswith(_GIVEN):
            continue
        for line in ast.parse(cell).body:
            for name, value in _assignments(line, namespace).items():
                given[name] = value
                if cell.startswith(_DECLARED) and value is None:
                    open_names.add(name)
    return given, open_names


def _assignments(line: ast.stmt, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values of one line: what stands there if it is a literal, else what it led to."""
    targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
    names = [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
    try:
        value = ast.literal_eval(line.value) if len(names) == 1 else None  # type: ignore[attr-defined]
        if len(names) == 1:
            return {names[0]: value}
    except (ValueError, AttributeError):
        pass  # such as 2**8
    return {name: namespace[name] for name in names if name in namespace}
