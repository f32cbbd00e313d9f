"""Losses, samplers and models by name: those of the library, and a reader's own.

    from gsas_lab.losses import Loss
    from gsas_lab.parts import register

    @register("focal")                        # from here on Settings(loss="focal")
    class Focal(Loss):
        def formula(self, positive_scores, negative_scores): ...

Everything that can be asked of a part is asked of its class or of the object that `assemble` makes of
it. A part of one's own lives in a notebook's cell or in a file, which `load` executes; the command
line takes --parts my_parts.py, and hands it to the workers of a sweep as $GSAS_LAB_PARTS.
"""

import hashlib
import importlib.util
import linecache
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from gsas_lab import files
from gsas_lab.errors import InputError

VARIABLE = "GSAS_LAB_PARTS"  # files to load, as in PATH
Kind = TypeVar("Kind", bound=type)


class Registry(dict[str, Any]):
    """The parts of one kind by name. An unknown name is an InputError that names the known ones."""

    every: ClassVar[list["Registry"]] = []

    def __init__(self, kind: str, base: type) -> None:
        super().__init__()
        self.kind, self.base = kind, base
        self.own: dict[str, str] = {}  # parts that are not the library's -> hash of their source
        self.files: dict[str, str] = {}  # of those that a file registered -> the file
        Registry.every.append(self)

    def __missing__(self, name: str) -> Any:
        load_given()
        if name in self:
            return self[name]
        raise InputError(
            f"{self.kind} = {name!r}: choose one of {', '.join(self)}, or load the file that "
            f"registers it (--parts my_parts.py, ${VARIABLE} or gsas_lab.parts.load)."
        )

    def add(self, name: str, part: Any, source: str | None = None) -> None:
        """source: hash of the text that a part of one's own stands in.

        InputError for a part that lacks something or fails its `check`, for a name of another, and
        for one that a folder or a list of names cannot hold.
        """
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]{,59}", name):
            raise InputError(
                f"The {self.kind} {part.__name__} is registered as {name!r}: give a name of letters, "
                "digits, - and _."
            )
        if name in self and (source is None or name not in self.own):
            raise InputError(f"A {self.kind} called {name!r} exists already: choose another name.")
        first, here = self.files.get(name) if name in self.own else None, _loading[-1]
        if first and here and first != here and self.own[name] != source:
            raise InputError(
                f"A {self.kind} called {name!r} is in {first} already: choose another name."
            )
        if lacking := sorted(getattr(part, "__abstractmethods__", ())):
            raise InputError(
                f"The {self.kind} {part.__name__} has no {' and no '.join(lacking)}: define it."
            )
        if source is not None:
            try:
                part.check()
            except InputError as error:
                raise InputError(f"The {self.kind} {part.__name__} {error}") from None
            except Exception as error:  # whatever a part's own code does
                told = f"fails on a small example ({type(error).__name__}: {error}): mend it."
                raise InputError(f"The {self.kind} {part.__name__} {told}") from error
            self.own[name] = source
            self.files[name] = here
        # A parent's name is another part's, and what a parent may, its child may not.
        part.words = vars(part).get("words") or part.__name__
        part.capturable = vars(part).get("capturable", source is None)
        self[name] = part


def register(name: str) -> Callable[[Kind], Kind]:
    """A class decorator: its class is from now on a loss, a sampler or a model of that name.

    Which of them follows from what it inherits. A part that is registered again under its name, as
    when a cell is run or a file is loaded twice, takes the place of the first. InputError if it is
    none of the three, lacks a method, fails the check of its kind (`Loss.check`, `Sampler.check`,
    `Model.check`), or has a name of the library's or of another file's part.
    """
    if not isinstance(name, str):
        raise InputError('register takes a name: write @register("my-name") above the class.')
    source = _source(sys._getframe(1).f_code.co_filename)

    def put(part: Kind) -> Kind:
        for registry in Registry.every:
            if isinstance(part, type) and issubclass(part, registry.base):
                registry.add(name, part, source)
                return part
        kinds = ", ".join(registry.base.__name__ for registry in Registry.every)
        raise InputError(f"The part {name!r} is none of {kinds}: let its class inherit from one.")

    return put


def load(path: str | Path) -> None:
    """Execute a file that registers parts. InputError if it is missing or raises."""
    path = files.chosen(path, "parts")
    if not path.is_file():
        raise InputError(f"The parts file {path} does not exist: name a file of Python.")
    if path.suffix != ".py" or os.pathsep in str(path.resolve()):
        raise InputError(
            f"{path}: a parts file ends in .py, and no '{os.pathsep}' is in its path: rename it."
        )
    _loading.append(str(path.resolve()))
    before = [(each, dict(each), dict(each.own)) for each in Registry.every]
    try:
        spec = importlib.util.spec_from_file_location(f"parts_{path.stem}", path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look their annotations up
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does
        for registry, known, own in before:  # all of its parts or none
            registry.clear()
            registry.update(known)
            registry.own.clear()
            registry.own.update(own)
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path} failed ({type(error).__name__}: {error}): mend it.") from error
    finally:
        _loading.pop()
    names = [*os.environ.get(VARIABLE, "").split(os.pathsep), str(path.resolve())]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(filter(None, names)))
    _given.add(str(path.resolve()))


def load_given() -> None:
    """Load what $GSAS_LAB_PARTS names, each file once in a process."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if name not in _given:
            _given.add(name)
            load(name)


_given: set[str] = set()  # files that were loaded
_loading = [""]  # those that are being executed, one within the other; "" is a cell


def sources(**names: str) -> dict[str, str]:
    """Of the named parts (loss="focal", …) those that are not the library's -> a hash of the source.

    It belongs to a run's identity: a part that was changed is another one. What the file imports is
    not looked at.
    """
    found = {}
    for registry in Registry.every:
        name = names.get(registry.kind)
        if name is not None and registry[name] and name in registry.own:
            found[registry.kind] = registry.own[name]
    return found


def _source(file: str) -> str:
    """Hash of the file or the notebook's cell that registers a part."""
    linecache.checkcache(file)  # it may have been edited under a running kernel
    text = "".join(linecache.getlines(file))
    # Typed where nothing keeps the text: each time another part, rather than one taken for another.
    return hashlib.sha256(text.encode() or os.urandom(16)).hexdigest()[:12]
