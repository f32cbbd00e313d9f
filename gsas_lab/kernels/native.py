"""The native route of `fused`: native.cpp, compiled for this very machine when it is first needed.

The compiler takes a few seconds, once; the library is kept in the user's cache folder, which nobody
else may write to, beside its checksum, under a name that holds its source and this machine's kind of
processor. Where there is no C++20 compiler, or GSAS_LAB_NATIVE=0 is set, `load` returns None, logs
why, and `fused` takes the portable route.
"""

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gsas_lab.errors import InputError

SOURCE = Path(__file__).with_suffix(".cpp")
WIDTHS = (16, 32, 48, 64, 96, 128, 256)  # of d, as compiled
_FLAGS = "-std=c++20 -O3 -fno-math-errno -fPIC -shared -pthread -Wno-psabi".split()
_log = logging.getLogger(__name__)


class _Work(ctypes.Structure):
    """As `Work` in native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in "hidden table positives negatives".split()],
        *[(name, ctypes.c_void_p) for name in "d_hidden d_table begin pairs".split()],
        *[(name, ctypes.c_int64) for name in "positions k rows chunk threads softmax".split()],
        *[(name, ctypes.c_float) for name in "beta bias scale".split()],
        *[(name, ctypes.c_double) for name in "loss d_bias".split()],
        *[(name, ctypes.c_void_p) for name in "parallel number size".split()],
    ]


class Pairs(NamedTuple):
    """The gradient of a table (N, d) that nobody has summed: row i's is Σ slope · hidden[position]
    over the pairs from begin[i] to begin[i + 1].
    """

    begin: Tensor  # (N + 1,) int32
    pairs: Tensor  # (m, 2) int32: positions, and the bits of float32 slopes
    hidden: Tensor  # (P, d) float32


def sampled(
    softmax: bool,
    beta: float,
    hidden: Tensor,
    table: Tensor,
    positives: Tensor,
    negatives: Tensor,
    bias: Tensor | None,
    *,
    summed: bool = True,
) -> tuple[Tensor, Tensor, Tensor | Pairs, Tensor]:
    """Mean loss and its gradients: see `fused`. Computed in float32 on CPU.

    hidden (P, d), table (n_items + 1, d), d one of WIDTHS, positives (P,), negatives (P, k)
    -> loss (), d_hidden (P, d), d_table (n_items + 1, d), d_bias (); positions with positive 0 take
    no part. Not `summed`, d_table is left as Pairs. The gradients of hidden and table are the same
    bits for any number of threads; loss and d_bias are summed thread by thread. InputError for shapes
    that do not fit together and for an item that is not in the table.
    """
    library = load()
    if library is None:
        raise InputError("The native route could not be built here: choose route='portable'.")
    hidden, table = (x.detach().float().contiguous() for x in (hidden, table))
    positives, negatives = (x.long().contiguous() for x in (positives, negatives))
    if not len(hidden) == len(positives) == len(negatives) or hidden.shape[1] != table.shape[1]:
        raise InputError(
            f"hidden {tuple(hidden.shape)}, table {tuple(table.shape)}, positives "
            f"{tuple(positives.shape)} and negatives {tuple(negatives.shape)} do not fit together."
        )
    d_hidden = torch.empty_like(hidden)
    (positions, d), rows, k = hidden.shape, len(table), negatives.shape[1]
    # Short enough for the hidden states to stay in the second cache, long enough for an item to be
    # met many times.
    chunk = max(1024, 40 * rows // (k + 1))
    d_table: Tensor | Pairs
    if summed:
        d_table = torch.empty_like(table) if positions else torch.zeros_like(table)
        outputs = {"d_table": d_table.data_ptr()}
    else:
        begin = torch.zeros(rows + 1, dtype=torch.int32)
        d_table = Pairs(begin, torch.empty(positions * (k + 1), 2, dtype=torch.int32), hidden)
        outputs, chunk = dict(begin=begin.data_ptr(), pairs=d_table.pairs.data_ptr()), positions
    work = _Work(
        *(x.data_ptr() for x in (hidden, table, positives, negatives, d_hidden)),
        positions=positions,
        k=k,
        rows=rows,
        chunk=chunk,
        threads=torch.get_num_threads(),
        softmax=softmax,
        beta=beta,
        bias=0.0 if bias is None else float(bias),
        scale=1 / max(int(positives.count_nonzero()), 1),
        **outputs,
        **_pool(),
    )
    if library.sampled(ctypes.byref(work), d):
        raise InputError(
            f"An item lies outside the table's {rows} rows, or d = {d} is not in {WIDTHS}."
        )
    return hidden.new_tensor(work.loss), d_hidden, d_table, hidden.new_tensor(work.d_bias)


class _Update(ctypes.Structure):
    """As `Update` in native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in "table mean square rows begin order".split()],
        *[(name, ctypes.c_void_p) for name in "values keep rate root".split()],
        *[(name, ctypes.c_void_p) for name in "pair_begin pairs hidden".split()],
        *[(name, ctypes.c_int64) for name in "n d threads".split()],
        *[(name, ctypes.c_float) for name in "beta2 left fresh eps".split()],
        *[(name, ctypes.c_void_p) for name in "parallel number size".split()],
    ]


def update(tensors: Mapping[str, Tensor | None], betas: tuple[float, float], eps: float) -> None:
    """`rows.RowOptimizer`'s step in place, where `load` found a library: see `Update` in native.cpp.

    tensors: the pointers of `Update` by name, each contiguous, on CPU, of its type there. The same
    bits for any number of threads.
    """
    library, rows, table = load(), tensors["rows"], tensors["table"]
    assert library is not None and rows is not None and table is not None
    addresses = {name: None if x is None else x.data_ptr() for name, x in tensors.items()}
    sizes = {"n": len(rows), "d": table.shape[1], "threads": torch.get_num_threads()}
    rates = {"beta2": betas[1], "left": 1 - betas[0], "fresh": 1 - betas[1], "eps": eps}
    work = _Update(**addresses, **sizes, **rates, **_pool())
    library.update(ctypes.byref(work))


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled library, built if need be; None, and a line in the log, where it cannot be.

    Only what was built here and not changed since is loaded: a file that was cut short would end
    the process. Whatever else is found is said once and built anew.
    """
    if os.environ.get("GSAS_LAB_NATIVE") == "0":
        _log.info("GSAS_LAB_NATIVE=0: the portable route is used")
        return None
    try:
        path = _path()
        if (library := _kept(path)) is not None:
            return library
        with _alone(path.parent):
            # Perhaps another process has built it meanwhile.
            return _kept(path) or _open(_build(path))
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        _log.warning("no native route, the slower portable one is used: %s", said)
        return None


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library of an earlier process, or None if there is none that fits its checksum."""
    folder = path.parent
    if not folder.exists():
        return None
    state = folder.stat()
    if state.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user: set XDG_CACHE_HOME")
    if state.st_mode & 0o022:  # others may have put in what they like
        _log.warning("%s was writable by others: what it held is compiled again", folder)
        folder.chmod(0o700)
        for file in folder.glob("native-*.so*"):
            file.unlink()
    if not path.exists():
        return None
    try:
        if _sum_of(path).read_text("ascii") != _checksum(path):
            raise OSError("it does not fit its checksum")
        return _open(path)
    except (OSError, UnicodeDecodeError, AttributeError) as error:
        _log.warning("the compiled loss %s is compiled again: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    # AttributeError if one is not there.
    for name in ("sampled", "pack_table", "scan_table"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.update.argtypes = [ctypes.c_void_p]
    return library


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sum_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@functools.cache
def _pool() -> dict[str, int | None]:
    """Addresses in the GNU OpenMP library that torch has loaded; empty if it has another one."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
        torchs = str(Path(torch.__file__).resolve().parent)  # torch/lib or torch.libs
        loaded = {line.split()[-1] for line in lines if "libgomp" in line}
        library = ctypes.CDLL(
            next(path for path in loaded if path.startswith((torchs + "/", torchs + ".libs/")))
        )
        names = {"parallel": "GOMP_parallel", "number": "omp_get_thread_num"}
        names |= {"size": "omp_get_num_threads"}
        return {
            ours: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            for ours, name in names.items()
        }
    except (OSError, StopIteration, AttributeError):
        return {}


def _path() -> Path:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    told = "\n".join([SOURCE.read_text("utf-8"), *_FLAGS, platform.machine(), processor])
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # to be ignored then, says the specification
        cache = Path.home() / ".cache"
    return cache / "gsas-lab" / f"native-{name}.so"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder, made for this user alone, while no other process builds in it.

    The kernel unlocks when a process ends. What a killed one left behind is deleted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    # Neither followed nor emptied, should it be a link.
    number = os.open(
        folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with open(number, "wb") as file:
        with suppress(OSError):  # some network disks have no locks: two may build then, at no harm
            fcntl.flock(file, fcntl.LOCK_EX)
        for left in [*folder.glob("build-*"), *folder.glob("tmp*")]:  # tmp*: of earlier versions
            shutil.rmtree(left, ignore_errors=True)
        yield


def _build(path: Path) -> Path:
    named = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((found for name in named if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler was found")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        built = Path(folder) / path.name
        tune = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
        subprocess.run(
            [compiler, *_FLAGS, tune, str(SOURCE), "-o", str(built)],
            check=True, capture_output=True, text=True, timeout=300,
            env=os.environ | {"TMPDIR": folder},
        )  # fmt: skip
        _open(built)  # before anybody else may
        _sum_of(built).write_text(_checksum(built), "ascii")
        for file in (_sum_of(built), built):  # whole or not at all, after a power cut too
            with open(file, "rb") as written:
                os.fchmod(written.fileno(), 0o600)
                os.fsync(written.fileno())
            os.replace(file, path.with_name(file.name))
    return path
