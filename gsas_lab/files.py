"""Folders and files: written whole or not at all, by one process at a time, read with suspicion."""

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from gsas_lab.errors import InputError

ROOT = Path(__file__).resolve().parent.parent  # the checkout


def runs_folder() -> Path:
    """$GSAS_LAB_RUNS, or outputs/runs in the project."""
    return Path(os.environ.get("GSAS_LAB_RUNS", ROOT / "outputs" / "runs"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process to work in it; InputError if another one does.

    The kernel unlocks when the process ends, however it ends: a file "lock" that was left behind
    locks nothing.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): check the disk."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder} is being worked on by process {file.read() or 'unknown'}: wait until it "
                "ends, or stop it; the same call then goes on."
            ) from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise InputError(f"{folder} was just left by another process: start again.")
        file.truncate(0)
        print(f"{os.getpid()} on {platform.node()}", end="", file=file, flush=True)
        yield
        path.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`write` of a dictionary as JSON."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """All or nothing: a reader sees the old file or the new one, also after a power cut.

    content: bytes, or a function that writes them into the open file. InputError on a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} could not be written ({reason}): free some disk space or choose another "
            "folder; what was finished before is kept."
        ) from error


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """`write` of tensors and plain values, for `read_checkpoint`."""
    write(path, lambda file: torch.save(dict(content), file))


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """Read weights only: nothing in the file can run code. InputError if it is cut or another's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["identity"]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: train the run first.") from None
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
