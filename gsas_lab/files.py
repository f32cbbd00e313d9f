"""Folders and files: written whole or not at all, by one process at a time, read with suspicion."""

import fcntl
import hashlib
import io
import json
import math
import os
import platform
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from gsas_lab.errors import Busy, InputError

_PACKAGE = Path(__file__).resolve().parent
CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()  # or installed from a wheel, which holds
ROOT = _PACKAGE.parent if CHECKOUT else _PACKAGE / "project"  # notebooks, docs, evidence, registry
HOME = ROOT if CHECKOUT else Path(os.path.expanduser("~")) / "gsas-lab"  # of outputs/ and data/
MANIFEST = "manifest.json"  # of a folder's files, with their checksums; written last

try:
    _STARTED = Path.cwd()  # of this process: what a relative GSAS_LAB_RUNS starts from
except OSError:  # it was deleted
    _STARTED = ROOT


def chosen(given: str | os.PathLike[str], what: str = "path") -> Path:
    """A path as a user wrote it, in which "~" and "~name" are homes.

    InputError for one that no file can have: empty, with a NUL, or of nobody's home.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{what} = {given!r} names no file or folder: give a path.")
    text = os.fspath(given)
    if not text or "\0" in text:
        raise InputError(f"{what} = '{text}' names no file or folder: give a path.")
    if (found := os.path.expanduser(text)).startswith("~"):
        raise InputError(f"{what} = '{text}': there is no such home folder; write ./~… for a file.")
    return Path(found)


def output(given: str | os.PathLike[str]) -> Path:
    """A folder to write into, as a user named it; it need not exist.

    InputError for a file, and for what is no place for results: the root of the disk, a home, the
    project itself, its sources, and all that holds one of them.
    """
    folder = chosen(given, "output")
    try:
        place = folder.resolve()
        taken = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as error:  # a loop of links, too long a name
        raise InputError(f"{folder} cannot be written ({_reason(error)}).") from None
    if taken:
        raise InputError(f"{folder} is a file: name a folder to write into.")
    within = [ROOT / name for name in _SOURCES]
    homes = [Path(os.path.expanduser("~")).resolve(), ROOT, HOME]
    if any(home.is_relative_to(place) for home in homes) or any(map(place.is_relative_to, within)):
        raise InputError(f"{folder} is no folder for results: name one of its own, outputs/….")
    return folder


_SOURCES = ("benchmarks", "docs", "gsas_lab", "notebooks", "tests", ".git", ".github", ".venv")


def runs_folder() -> Path:
    """$GSAS_LAB_RUNS, or outputs/runs in HOME where it is unset or empty.

    A relative one starts where the process did, wherever it has gone since.
    """
    given = os.environ.get("GSAS_LAB_RUNS")
    return _STARTED / chosen(given, "GSAS_LAB_RUNS") if given else HOME / "outputs" / "runs"


def settle_folders() -> None:
    """The folders that GSAS_LAB_… name -> absolute ones, for kernels and workers that run elsewhere."""
    for name in ("GSAS_LAB_RUNS", "GSAS_LAB_DATA", "GSAS_LAB_CACHE"):
        if given := os.environ.get(name):
            os.environ[name] = str(_STARTED / chosen(given, name))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process to work in it; Busy, an InputError, if another one does.

    The kernel unlocks when the process ends, however it ends: a file "lock" that was left behind
    locks nothing. One that is no plain file of this folder alone, such as a link, is refused. A
    folder that was made for it and is left empty goes again.
    """
    path = folder / "lock"
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # A link is not followed, and opening a FIFO waits for nobody.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        number = os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        if path.is_symlink() or path.is_dir():
            raise _no_lock(path) from None
        raise InputError(
            f"{folder} cannot be written ({_reason(error)}): check the disk."
        ) from None
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(number)
        raise _no_lock(path)
    with open(number, "r+", encoding="utf-8", errors="replace") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)  # somebody may only have looked, see `busy`
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{folder} is being worked on by process {file.read(200) or 'unknown'}: wait until "
                "it ends, or stop it; the same call then goes on."
            ) from None
        try:
            ours = os.path.samestat(os.fstat(number), path.stat())
        except FileNotFoundError:
            ours = False
        if not ours:
            raise Busy(f"{folder} was just left by another process: start again.")
        file.truncate(0)
        print(f"{os.getpid()} on {platform.node()}", end="", file=file, flush=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # there is something in it
                    folder.rmdir()


@contextmanager
def workplace(folder: Path, names: Iterable[str] = ()) -> Iterator[Path]:
    """An empty <folder>.partial; in the end all that was made there is moved into folder.

    index.html comes last. For who has locked the folder. Where it goes wrong, what was made stays,
    and the next call deletes it: a file ".gsas-lab" says that it may. InputError for one without.

    In folder such a file says which files were written so, with their checksums: InputError, and
    nothing is moved, where another one has the name of one that was made. names: those that are known
    before.
    """
    partial = folder.with_name(folder.name + ".partial")
    if partial.is_symlink() or (partial.exists() and not (partial / _OURS).is_file()):
        raise InputError(f"{partial} is of no earlier call: move it away, it would be deleted.")
    _refuse_others(folder, ["index.html", *names], _written(folder))
    with _told(folder):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        (partial / _OURS).touch()
    yield partial
    with _told(folder):
        made = [file for file in partial.iterdir() if file.name != _OURS]
        sums = {file.name: [checksum(file.read_bytes())] for file in made}
        before = _written(folder)
        _refuse_others(folder, sums, before)
        both = {name: before.get(name, []) + sums.get(name, []) for name in {*before, *sums}}
        write_json(folder / _OURS, both)  # first, so that a call that is killed below goes on
        for file in sorted(made, key=lambda file: file.name == "index.html"):
            file.replace(folder / file.name)
        write_json(folder / _OURS, before | sums)
        shutil.rmtree(partial)


def _written(folder: Path) -> dict[str, list[str]]:
    """Name -> checksums of the files that `workplace` left in a folder and that are still there."""
    found: dict[str, Any] = {}
    with suppress(InputError):  # there is none, or it is somebody else's: then none is ours
        found = read_json(folder / _OURS)
    kept = {n: x for n, x in found.items() if n == Path(n).name and (folder / n).is_file()}
    return {name: sums for name, sums in kept.items() if isinstance(sums, list)}


def _refuse_others(folder: Path, names: Iterable[str], written: dict[str, list[str]]) -> None:
    for name in names:
        path = folder / name
        if path.is_symlink() or path.exists():
            if path.is_symlink() or checksum(read(path)) not in written.get(name, []):
                raise InputError(
                    f"{path} is not as gsas-lab wrote it, or not its own, and would be overwritten: move "
                    "it away, or choose another folder."
                )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({_reason(error)}): check the disk."
        ) from None


_OURS = ".gsas-lab"


def busy(folder: Path) -> bool:
    """Does a process work in it now? Nothing is written, and nobody is kept waiting."""
    try:
        with _plain(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _no_lock(path: Path) -> InputError:
    return InputError(f"{path} is a link, a folder or a device, and no lock file: remove it.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def as_json(content: dict) -> bytes:
    """A dictionary as JSON in UTF-8; what is not UTF-8, as in some file names, is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")


def write_json(path: Path, content: dict) -> None:
    """`write` of a dictionary as JSON."""
    write(path, as_json(content))


def write(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """All or nothing: a reader sees the old file or the new one, also after a power cut.

    content: bytes, or a function that writes them into the open file. InputError on a full disk, and
    for a device, a pipe or a folder, whose place a file would take.
    """
    with suppress(OSError):  # there is nothing yet
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is a folder, a device or a pipe: name a file to write.")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # a link there must not be written through
        with open(partial, "xb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(
            f"{path} could not be written ({_reason(error)}): free some disk space or choose "
            "another folder; what was finished before is kept."
        ) from error


def read(path: Path) -> bytes:
    """A plain file's bytes; InputError for whatever cannot be read, also a folder or a FIFO."""
    try:
        with _plain(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({_reason(error)}).") from None


def _plain(path: Path) -> IO[bytes]:
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # waits for nobody
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no plain file")
    return file


def read_json(path: Path) -> dict[str, Any]:
    """A dictionary; InputError if the file holds none."""
    return parsed(path, read(path))


def parsed(path: Path, data: bytes) -> dict[str, Any]:
    """The dictionary in a file's bytes; InputError, which names the file, if it holds none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is damaged.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be read: it holds no JSON object.")
    return content


# --- a folder that knows its files ----------------------------------------------------------------


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Say what a folder holds: content, with "files", a mapping of names to checksums.

    Written after all of them, so that its presence says that the folder is whole.
    """
    write_json(folder / MANIFEST, content | {"checksum": _of(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote; InputError if a bit of it has changed."""
    content = read_json(folder / MANIFEST)
    if content.pop("checksum", None) != _of(content) or not isinstance(content.get("files"), dict):
        raise InputError(
            f"{folder / MANIFEST} is not as it was written, so nothing in its folder can be "
            "trusted: delete the folder and train again."
        )
    return content


def _of(content: dict[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())


# --- weights and checkpoints ----------------------------------------------------------------------


def weights(model: torch.nn.Module) -> bytes:
    """A model's weights in the safetensors format; a table that two layers share, once."""
    state, first = model.state_dict(), _first_names(model)
    return safetensors.torch.save({name: state[name].contiguous() for name in set(first.values())})


def write_weights(path: Path, parts: Mapping[str, tuple[tuple[int, ...], Iterable[Tensor]]]) -> str:
    """`write` of float32 weights that come in pieces, by name (shape, pieces), as `weights` has them
    -> the checksum.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (shape, _) in parts.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants its numbers aligned
    sums: list[str] = []

    def write_pieces(file: IO[bytes]) -> None:
        hashed = _Hashed(file)
        hashed.write(len(text).to_bytes(8, "little") + text)
        for _, pieces in parts.values():
            for piece in pieces:
                hashed.write(piece.contiguous().numpy().tobytes())
        sums.append(hashed.hash.hexdigest())

    write(path, write_pieces)
    return sums[0]


def load_weights(model: torch.nn.Module, data: bytes, path: Path) -> None:
    """The reverse. InputError, which names the path, if they are not of such a model."""
    try:
        saved, first = safetensors.torch.load(data), _first_names(model)
        if set(saved) != set(first.values()):
            raise ValueError("other layers")
        model.load_state_dict({name: saved[first[name]] for name in first})
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} does not hold the weights of this model ({error}): delete the folder and "
            "train the run again."
        ) from None


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Name of each tensor of a model -> the first name of the same memory."""
    first: dict[tuple, str] = {}
    state: dict[str, Tensor] = model.state_dict()
    return {name: first.setdefault((t.data_ptr(), t.shape), name) for name, t in state.items()}


_DIGEST = hashlib.sha256().digest_size


class _Hashed:
    """A file that hashes what is written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """`write` of tensors and plain values, for `read_checkpoint`; ends with its SHA-256."""

    def write_hashed(file: IO[bytes]) -> None:
        hashed: Any = _Hashed(file)
        torch.save(dict(content), hashed)
        file.write(hashed.hash.digest())

    write(path, write_hashed)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """Read weights only: nothing in the file can run code.

    InputError if it is cut, changed by a single bit, or another's.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: train the run first.")
    try:
        with _plain(path) as file:
            hashed, left = hashlib.sha256(), os.fstat(file.fileno()).st_size - _DIGEST
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                hashed.update(piece)
                left -= len(piece)
            if left or file.read() != hashed.digest():
                raise ValueError("its checksum does not fit")
        # Mapped: what is copied out of it is in memory once, not twice.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = content["identity"]
    except Exception as error:  # torch raises a different one for every way a file can be broken
        raise InputError(
            f"{path} is not a whole checkpoint of gsas-lab: delete it and train again."
        ) from error
    if found != identity:
        raise InputError(
            f"{path} belongs to another model or data set ({found}, not {identity}): "
            "delete it or use another run folder."
        )
    return content


def read_weights_of_format_3(path: Path) -> dict[str, Tensor]:
    """The weights of a run folder that has no manifest, checked by the archive's own CRCs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data := read(path))) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} is damaged")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["model"]
    except Exception as error:
        raise InputError(f"{path} holds no whole weights: train the run again.") from error
