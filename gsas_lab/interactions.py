"""Files and downloads -> interactions: who consumed what, in which order.

    load("known-truth" | "ml-1m" | "gowalla" | … | a path | a DataFrame) -> Interactions

`reading.py` knows the forms of files and reads each exactly. Users and items are renumbered in the
order of their ids (by number where all are integers, else as text), so that MovieLens-1M's item i
stays i. Each file is read once; its SHA-256, and so the cache, is that of the bytes that were parsed.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsas_lab.errors import InputError
from gsas_lab.files import HOME, ROOT, chosen
from gsas_lab.reading import CHECK_INS, Columns, Table, from_bytes, from_frame
from gsas_lab.worlds import WORLDS, World

PAD = 0  # the item that is no item
KNOWN_TRUTH = "known-truth"

_DATA = HOME / "data"  # downloads, and the registry (a user's own one, beside an installed package)
_CACHE_FORMAT = 4  # raise it when parsing or the cached arrays change: old caches are then ignored


@dataclass(frozen=True, eq=False)
class Interactions:
    """The interactions of all users; history u is `items[offsets[u]:offsets[u + 1]]`."""

    name: str
    items: np.ndarray  # (n_interactions,) int32 in 1…n_items; user after user, oldest first
    offsets: np.ndarray  # (n_users + 1,) int64
    user_ids: np.ndarray  # (n_users,) ids as in the file: int64, or text (object)
    item_ids: np.ndarray  # (n_items + 1,) the same; entry 0 is padding
    sha256: str  # of the source file; in the known-truth world, of the arrays
    tie_rule: str  # what orders a user's interactions, and equal timestamps
    exclude_seen: bool = True  # the data set's convention at evaluation; False where items repeat
    titles: np.ndarray | None = None  # (n_items + 1,) str
    genres: np.ndarray | None = None  # (n_items + 1,) str, "|" between
    world: World | None = None  # the known-truth world, with its P(i | history)
    unused: tuple[str, ...] = ()  # names of the file's other columns, weights among them
    times: np.ndarray | None = None  # (n_interactions,) float64: seconds since 1970, or own numbers

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """Size of the catalogue, padding excluded."""
        return len(self.item_ids) - 1

    @property
    def n_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """(n_users,) interactions of each user."""
        return np.diff(self.offsets)

    def history(self, user: int) -> np.ndarray:
        """Items of user 0…n_users − 1, oldest first: (length,) int32."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def row(self, user_id: int | str) -> int:
        """The number, 0…n_users − 1, of the user with this id in the file; InputError if none."""
        if (found := self._rows.get(str(user_id))) is None:
            raise InputError(
                f"{self.name} has no user {user_id}: give one of its ids, such as "
                f"{', '.join(map(str, self.user_ids[:3]))}."
            )
        return found

    def item(self, name: int | str) -> int:
        """The number, 1…n_items, of the item with this id in the file, or else with exactly this
        title, if no other has it; InputError if none.
        """
        if (found := self._numbers.get(str(name))) is None:
            raise InputError(
                f"{self.name} has no item '{name}': give an id of its file, such as "
                f"{', '.join(map(str, self.item_ids[1:4]))}, or a title that one item has."
            )
        return found

    @cached_property
    def again(self) -> np.ndarray:
        """(n_interactions,) True where the user had taken the item before."""
        users = np.repeat(np.arange(self.n_users, dtype=np.int64), self.lengths)
        first = np.unique(users * (self.n_items + 1) + self.items, return_index=True)[1]
        again = np.ones(self.n_interactions, bool)
        again[first] = False
        return again

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.user_ids.tolist())}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        names = [] if self.titles is None else self.titles[1:].tolist()
        shared = Counter(names)
        by_title = {name: i for i, name in enumerate(names, 1) if shared[name] == 1}
        return by_title | {str(name): i for i, name in enumerate(self.item_ids[1:].tolist(), 1)}

    def title(self, item: int) -> str:
        """Title of item 1…n_items; its id in the file where there are no titles."""
        if self.titles is None and self.world:
            return str(self.world.item_names[item])
        return str((self.item_ids if self.titles is None else self.titles)[item])


def load(
    name_or_path: str | os.PathLike[str] | pd.DataFrame,
    *,
    min_user: int = 1,
    min_item: int = 1,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
) -> Interactions:
    """Load a named data set, a file of one of the forms of `reading.py`, or a table in memory.

    min_user, min_item: items with fewer than min_item interactions are dropped, then users with
    fewer than min_user, again and again until nothing changes (the k-core); the rest is renumbered.
    A named data set may ask for more itself (data/registry.json). user, item, time: names of
    columns; None: found by the usual names. Interactions are ordered by user and time with a stable
    sort; without times, or with time="none", the order of the file holds.

    Named files are looked for in $GSAS_LAB_DATA, then in data/, then downloaded to data/; each is
    verified by SHA-256. Parsed arrays are cached in $GSAS_LAB_CACHE, else in outputs/cache.
    Raises InputError for whatever cannot be read, with the line where there is one.
    """
    for option, value in (("min_user", min_user), ("min_item", min_item)):
        if value < 1:
            raise InputError(f"{option} = {value} must be at least 1 (1 keeps everything).")
    named = Columns(user, item, time)
    if isinstance(name_or_path, pd.DataFrame):
        arrays = _arrays(
            "the table", from_frame(name_or_path, "the table", named), min_user, min_item
        )
        parts = [
            arrays["items"],
            arrays["offsets"],
            *map(_packed, (arrays["user_ids"], arrays["item_ids"])),
        ]
        return Interactions("table", **arrays, sha256=_sha256(b"".join(x.tobytes() for x in parts)))
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(
            f"A data set is a name, a path or a DataFrame, no {type(name_or_path).__name__}."
        )
    name = os.fspath(name_or_path)
    if name in WORLDS or name in (registry := _registry()):
        if named != Columns():
            raise InputError(f"{name} takes no names of columns: leave out user, item and time.")
    if name in WORLDS:
        if max(min_user, min_item) > 1:
            raise InputError(f"{name} takes no min_user or min_item: leave them at 1.")
        return from_world(WORLDS[name], name)
    if name in registry:
        return _load_named(name, registry[name], min_user, min_item)
    path = chosen(name, "dataset")
    if not os.path.exists(path) and len(path.parts) == 1 and not path.suffix:
        raise InputError(f"Unknown data set '{name}': give {_known()}, or the path of a file.")
    shown = os.fsencode(path.name).decode(errors="backslashreplace")  # names need not be UTF-8
    return Interactions(shown, **_parsed(path, _read(path), min_user, min_item, named))


def is_named(dataset: str | Path) -> bool:
    """Is it a data set of the project, or somebody's file?"""
    return str(dataset) in WORLDS or str(dataset) in _registry()


def place(name_or_path: str | Path) -> str:
    """A data set's name as it is; a file's path absolute, so that it means the same in any folder."""
    name = str(name_or_path)
    if is_named(name):
        return name
    path = Path(os.path.expanduser(name))  # of nobody's home: as it is, for load to refuse
    return (
        str(path.absolute())
        if os.path.exists(path) or path.parent != Path() or path.suffix
        else name
    )


def from_world(world: World, name: str = KNOWN_TRUTH) -> Interactions:
    """All users of a known-truth world; its items repeat, so evaluation keeps the seen ones.

    Titles and genres of a catalogue of over 100,000 items are made when a title is asked for.
    """
    lengths, few = world.lengths, world.n_items <= 100_000
    items = world.users(lengths)
    return Interactions(
        name=name,
        items=items,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=np.arange(1, len(lengths) + 1),
        item_ids=np.arange(world.n_items + 1),
        sha256=_sha256(items.tobytes() + world.popularity.tobytes()),
        tie_rule="none: the world is ordered",
        exclude_seen=False,
        titles=world.item_names if few else None,
        genres=world.item_genre_names if few else None,
        world=world,
    )


def describe(interactions: Interactions) -> pd.DataFrame:
    """One row: counts, density (interactions / users / items), lengths of the histories, the share
    of all interactions before a user's last 200, which SASRec's windows do not reach, the shares
    of interactions and of users' last ones that take an item again, the order, what is not used, and the
    checksum of the file as it was read.
    """
    users, items, lengths = interactions.n_users, interactions.n_items, interactions.lengths
    again = interactions.again
    row = {
        "users": users,
        "items": items,
        "interactions": interactions.n_interactions,
        "density": interactions.n_interactions / users / items,
        "median length": float(np.median(lengths)),
        "mean length": lengths.mean(),
        "longest": lengths.max(),
        "users with one interaction": int((lengths == 1).sum()),
        "beyond the last 200": np.maximum(lengths - 200, 0).sum() / lengths.sum(),
        "interactions taken again": again.mean(),
        "test targets seen before": again[interactions.offsets[1:] - 1].mean(),
        "order": interactions.tie_rule,
        "columns not used": ", ".join(interactions.unused[:8])
        + (" …" if len(interactions.unused) > 8 else "")
        or "none",
        "sha256": interactions.sha256[:12],
    }
    return pd.DataFrame(row, index=[interactions.name])


# --- named data sets: local folder, data/, download; always verified -----------------------------


class _Unavailable(InputError):
    """A named file is in no folder and cannot be downloaded."""


def _registry() -> dict[str, Any]:
    """The named data sets."""
    path = _DATA / "registry.json"
    if not path.exists():  # of an installed package
        path = ROOT / "data" / "registry.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it.") from None


def _known() -> str:
    return " or ".join([*WORLDS, *_registry()])


def _load_named(name: str, entry: dict[str, Any], min_user: int, min_item: int) -> Interactions:
    path, data = _fetch(entry["file"], entry["files"][entry["file"]])
    arrays = _parsed(path, data, max(min_user, entry["min_user"]), min_item, Columns())
    arrays["tie_rule"] = entry["tie_rule"]
    titles = genres = None
    if "titles" in entry:
        try:
            films, ids = (_fetch(file, entry["files"][file])[1] for file in entry["titles"])
            titles, genres = _film_titles(arrays["item_ids"], films, ids)
        except _Unavailable as error:
            warnings.warn(f"{name} is loaded without titles: {error}", stacklevel=3)
    kept = {"exclude_seen": entry["exclude_seen"]} if "exclude_seen" in entry else {}
    loaded = Interactions(name, **arrays, **kept, titles=titles, genres=genres)
    found = (loaded.n_users, loaded.n_items, loaded.n_interactions)
    expected = (entry["users"], entry["items"], entry["interactions"])
    if min_user <= entry["min_user"] and min_item == 1 and found != expected:
        more = ", ".join(f"{a - b:+,}" for a, b in zip(found, expected, strict=True))
        raise InputError(
            f"{path}: users, items and interactions are {found}, not the {expected} of "
            f"data/registry.json: a difference of {more}; get the file again, or correct the registry."
        )
    return loaded


def _fetch(file: str, source: dict[str, str]) -> tuple[Path, bytes]:
    """Path and verified bytes of a named file."""
    folders = [_DATA]
    if given := os.environ.get("GSAS_LAB_DATA"):
        folders.insert(0, chosen(given, "GSAS_LAB_DATA"))
        if not folders[0].is_dir():
            raise InputError(f"GSAS_LAB_DATA={given} is not a folder: correct or unset it.")
    for folder in folders:
        if (path := folder / file).exists():
            return path, _verified(path, _read(path), source, "delete it to download it again")
    path = _DATA / file
    elsewhere = f"get the right file elsewhere and put it in {_DATA}"
    data = _verified(source["url"], _download(file, source), source, elsewhere)
    try:
        _write_atomically(path, data)
    except OSError as error:  # the bytes are here: only the next load has to download again
        warnings.warn(f"{path} could not be kept: {error.strerror}.", stacklevel=4)
    return path, data


def _verified(where: Path | str, data: bytes, source: dict[str, str], advice: str) -> bytes:
    kind = next(kind for kind in _CHECKSUMS if kind in source)
    words, digest = _CHECKSUMS[kind]
    if (found := digest(data)) != source[kind]:
        raise InputError(
            f"{where}: the checksum ({words}) is {found[:12]}…, not {source[kind][:12]}… as in "
            f"data/registry.json, so the file is damaged or another version: {advice}."
        )
    return data


def _download(file: str, source: dict[str, str]) -> bytes:
    """Bytes of a named file from its public address; of one member where that is an archive."""
    url = source["url"]
    by_hand = f"download {url} by hand, put {file} in {_DATA}"
    try:
        import pooch  # only notebooks install it
    except ImportError:
        raise _Unavailable(
            f"{file} must be downloaded, which needs pooch: pip install pooch, or {by_hand}."
        ) from None
    received = io.BytesIO()
    progress = importlib.util.find_spec("tqdm") is not None
    try:
        pooch.HTTPDownloader(progressbar=progress)(url, received, None)
        if "member" not in source:
            return received.getvalue()
        with zipfile.ZipFile(received) as archive:
            return archive.read(source["member"])
    except Exception as error:  # of the network, or of an archive that is damaged in any way
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise _Unavailable(
            f"{file} could not be downloaded from {url} ({reason}): retry, or {by_hand}."
        ) from error


def _film_titles(item_ids: np.ndarray, films: bytes, ids: bytes) -> tuple[np.ndarray, np.ndarray]:
    """movies.dat (Latin-1) and lines "our id, film's id" -> titles, genres (n_items + 1,)."""
    lines = films.decode("latin-1").strip("\n").split("\n")
    by_film = {film: (title, genres) for film, title, genres in (x.split("::") for x in lines)}
    film_of = dict(line.split() for line in ids.decode("ascii").splitlines())
    rows = [("padding", ""), *(by_film[film_of[str(item)]] for item in item_ids[1:])]
    titles, genres = zip(*rows, strict=True)
    return np.array(titles), np.array(genres)


# --- bytes -> arrays, cached ---------------------------------------------------------------------


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_CHECKSUMS: dict[str, tuple[str, Callable[[bytes], str]]] = {  # whichever is known of a file
    "sha256": ("SHA-256", _sha256),
    "git_blob": (
        "git blob",
        lambda data: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    ),
    "md5": ("MD5", lambda data: hashlib.md5(data).hexdigest()),
}


def _read(path: Path) -> bytes:
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: give the file with the interactions inside it.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a device or a pipe, no file: write its content to one.")
    try:
        before = path.stat()
        data = path.read_bytes()
        after = path.stat()
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: correct it, or give {_known()}.") from None
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}): correct it, or copy it.") from None
    same = all(
        getattr(before, x) == getattr(after, x) for x in ("st_ino", "st_size", "st_mtime_ns")
    )
    if not same or len(data) != after.st_size:
        raise InputError(f"{path} changed while it was read: wait until it is written whole.")
    return data


def _write_atomically(path: Path, data: bytes) -> None:
    """All or nothing, as `files.write`, whose folder has one writer: here many may be at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _parsed(
    path: Path, data: bytes, min_user: int, min_item: int, named: Columns
) -> dict[str, Any]:
    """The fields of Interactions that come from the file, from the cache where it has them.

    The cache's name is a hash of all that the arrays depend on, so a changed file is never taken
    for the old one. A cache that cannot be read is rebuilt; one that cannot be written is not.
    """
    sha256 = _sha256(data)
    form = [suffix.lower() for suffix in path.suffixes[-2:]]  # two, as in .csv.gz
    form += [CHECK_INS] * (CHECK_INS in path.name)
    key = _sha256(
        repr((_CACHE_FORMAT, sha256, form, min_user, min_item, named)).encode(
            errors="backslashreplace"
        )
    )[:32]
    folder = os.environ.get("GSAS_LAB_CACHE") or _DATA.parent / "outputs" / "cache"
    cache = chosen(folder, "GSAS_LAB_CACHE") / f"{path.stem[:40]}-{key}.npz"
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as stored:
            arrays = {field: stored[field] for field in _CACHED}
        arrays |= {name: _ids_of(arrays[name]) for name in ("user_ids", "item_ids")}
    except Exception:  # noqa: BLE001 (absent or damaged in any way: the file itself is at hand)
        arrays = _parse(path, data, min_user, min_item, named)
        packed = io.BytesIO()
        ids = {name: _packed(arrays[name]) for name in ("user_ids", "item_ids")}
        told = {"tie_rule": arrays["tie_rule"], "unused": arrays["unused"]}
        told["times"] = [] if arrays["times"] is None else arrays["times"]
        np.savez(
            packed, allow_pickle=False, **arrays | ids | {n: np.array(x) for n, x in told.items()}
        )
        with contextlib.suppress(OSError, ValueError):  # that only costs the cache
            _write_atomically(cache, packed.getvalue())
    return arrays | {
        "sha256": sha256,
        "tie_rule": str(arrays["tie_rule"]),
        "unused": tuple(map(str, arrays["unused"])),
        "times": None if arrays["times"] is None or not len(arrays["times"]) else arrays["times"],
    }


_CACHED = ("items", "offsets", "user_ids", "item_ids", "tie_rule", "unused", "times")


def _packed(ids: np.ndarray) -> np.ndarray:
    """Ids as an array that needs no pickle and no room for the longest in each entry."""
    if ids.dtype != object:
        return ids
    return np.frombuffer("\n".join(ids.tolist()).encode(), np.uint8)  # none holds a "\n"


def _ids_of(packed: np.ndarray) -> np.ndarray:
    """The inverse of `_packed`."""
    if packed.dtype != np.uint8:
        return packed
    return np.array(packed.tobytes().decode().split("\n"), object)


def _parse(path: Path, data: bytes, min_user: int, min_item: int, named: Columns) -> dict[str, Any]:
    """Bytes -> what `_CACHED` names."""
    return _arrays(str(path), from_bytes(path, data, named), min_user, min_item)


def _arrays(where: str, table: Table, min_user: int, min_item: int) -> dict[str, Any]:
    users, items = table.users, table.items
    # Stable; the last key is the first to sort by.
    order = np.lexsort([users] if table.times is None else [table.times, users])
    users, items = users[order], items[order]
    keep = _core(users, items, min_user, min_item)
    if not keep.any():
        raise InputError(f"{where}: min_user = {min_user}, min_item = {min_item} keep nothing.")
    users_left, users = np.unique(users[keep], return_inverse=True)
    items_left, items = np.unique(items[keep], return_inverse=True)
    item_ids = table.item_ids[items_left]
    padding = np.array([""], object) if item_ids.dtype == object else np.zeros(1, item_ids.dtype)
    return {
        "items": (items + 1).astype(np.int32),
        "offsets": np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64),
        "user_ids": table.user_ids[users_left],
        "item_ids": np.concatenate([padding, item_ids]),
        "tie_rule": table.order,
        "unused": table.unused,
        "times": None if table.moments is None else table.moments[order][keep],
    }


def _core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """(n,) True where an interaction belongs to the k-core; see `load`."""
    keep = np.ones(len(users), dtype=bool)
    while True:
        before = keep.sum()
        keep &= np.bincount(items[keep], minlength=items.max() + 1)[items] >= min_item
        keep &= np.bincount(users[keep], minlength=users.max() + 1)[users] >= min_user
        if keep.sum() == before:
            return keep
