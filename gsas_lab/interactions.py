"""Files and downloads -> interactions: who consumed what, in which order.

    load("known-truth" | "ml-1m" | "beauty" | "video-games" | a path) -> Interactions

The form follows from the file's suffix:

    .txt and all others   "user item" lines, two integers, oldest first (as for SASRec and BERT4Rec)
    .csv .tsv .parquet    columns user (user_id, userId), item (item_id, itemId, movieId) and,
                          if there is one, timestamp (ts, time)
    .inter                RecBole: tab-separated, header "name:type"
    .data .dat            GroupLens u.data (tabs) and ratings.dat ("::"): user, item, rating, time

Users and items are renumbered in the order of their ids (by number where all are integers, else as
text), so that MovieLens-1M's item i stays i. Each file is read once; its SHA-256, and so the cache,
is that of the bytes that were parsed.
"""

import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import os
import re
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from gsas_lab.errors import InputError
from gsas_lab.worlds import WORLDS, World

PAD = 0  # the item that is no item
KNOWN_TRUTH = "known-truth"

_DATA = Path(__file__).resolve().parent.parent / "data"  # the registry, and downloads
_CACHE_FORMAT = 1  # raise it when parsing or the cached arrays change: old caches are then ignored
_MAX_ID = 2**31 - 1


class _Form(NamedTuple):
    """How a file is written."""

    separator: str | None  # None: parquet
    columns: list[str] | None  # None: a header line names them
    integers: bool  # ids must be integers; else they may be any text
    words: str  # what a line holds
    quoting: Literal[0, 3] = csv.QUOTE_NONE


_USER_ITEM = _Form(r"\s+", ["user", "item"], True, "two integers, user and item, on each line")
_RATINGS = ["user", "item", "rating", "timestamp"], True, "user, item, rating and timestamp"
_NAMED = None, False, "the columns that the header names, with user and item"
_FORMS = {
    ".data": _Form("\t", *_RATINGS),
    ".dat": _Form("::", *_RATINGS),
    ".csv": _Form(",", *_NAMED, csv.QUOTE_MINIMAL),
    ".tsv": _Form("\t", *_NAMED, csv.QUOTE_MINIMAL),
    ".inter": _Form("\t", *_NAMED),
    ".parquet": _Form(None, *_NAMED),
}
_COLUMN_NAMES = {  # after lower() and without "_"
    "user": {"user", "userid"},
    "item": {"item", "itemid", "movieid"},
    "timestamp": {"timestamp", "ts", "time"},
}
_CACHED = ("items", "offsets", "user_ids", "item_ids", "tie_rule")
_BY_TIME = "by timestamp; equal timestamps keep the order of the file (stable sort)"
_BY_FILE = "order of the file: it has no timestamps"


@dataclass(frozen=True, eq=False)
class Interactions:
    """The interactions of all users; history u is `items[offsets[u]:offsets[u + 1]]`."""

    name: str
    items: np.ndarray  # (n_interactions,) int32 in 1…n_items; user after user, oldest first
    offsets: np.ndarray  # (n_users + 1,) int64
    user_ids: np.ndarray  # (n_users,) ids as in the file
    item_ids: np.ndarray  # (n_items + 1,) ids as in the file; entry 0 is padding
    sha256: str  # of the source file; in the known-truth world, of the arrays
    tie_rule: str  # what orders a user's interactions, and equal timestamps
    exclude_seen: bool = True  # the data set's convention at evaluation; False where items repeat
    titles: np.ndarray | None = None  # (n_items + 1,) str
    genres: np.ndarray | None = None  # (n_items + 1,) str, "|" between
    world: World | None = None  # the known-truth world, with its P(i | history)

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
        found = np.flatnonzero(self.user_ids.astype(str) == str(user_id))
        if not len(found):
            raise InputError(
                f"{self.name} has no user {user_id}: give one of its ids, such as "
                f"{', '.join(map(str, self.user_ids[:3]))}."
            )
        return int(found[0])

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
    def _numbers(self) -> dict[str, int]:
        names = [] if self.titles is None else self.titles[1:].tolist()
        shared = Counter(names)
        by_title = {name: i for i, name in enumerate(names, 1) if shared[name] == 1}
        return by_title | {str(name): i for i, name in enumerate(self.item_ids[1:], 1)}

    def title(self, item: int) -> str:
        """Title of item 1…n_items; its id in the file where there are no titles."""
        return str((self.item_ids if self.titles is None else self.titles)[item])


def load(name_or_path: str | Path, *, min_user: int = 1, min_item: int = 1) -> Interactions:
    """Load a named data set or a file of one of the forms above.

    min_user, min_item: items with fewer than min_item interactions are dropped, then users with
    fewer than min_user, again and again until nothing changes (the k-core); the rest is renumbered.
    A named data set may ask for more itself (data/registry.json). Interactions are ordered by user
    and timestamp with a stable sort; without timestamps the order of the file holds.

    Named files are looked for in $GSAS_LAB_DATA, then in data/, then downloaded to data/; each is
    verified by SHA-256. Parsed arrays are cached in $GSAS_LAB_CACHE, else in outputs/cache.
    Raises InputError for whatever cannot be read, with the line where there is one.
    """
    for option, value in (("min_user", min_user), ("min_item", min_item)):
        if value < 1:
            raise InputError(f"{option} = {value} must be at least 1 (1 keeps everything).")
    name = str(name_or_path)
    if name in WORLDS:
        if max(min_user, min_item) > 1:
            raise InputError(f"{name} takes no min_user or min_item: leave them at 1.")
        return from_world(WORLDS[name], name)
    if name in (registry := _registry()):
        return _load_named(name, registry[name], min_user, min_item)
    path = Path(name).expanduser()
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise InputError(f"Unknown data set '{name}': give {_known()}, or the path of a file.")
    data = _read(path)
    return Interactions(path.name, **_parsed(path, data, min_user, min_item))


def place(name_or_path: str | Path) -> str:
    """A data set's name as it is; a file's path absolute, so that it means the same in any folder."""
    name = str(name_or_path)
    if name in WORLDS or name in _registry():
        return name
    path = Path(os.path.expanduser(name))  # of nobody's home: as it is, for load to refuse
    return str(path.absolute()) if path.exists() or path.parent != Path() or path.suffix else name


def from_world(world: World, name: str = KNOWN_TRUTH) -> Interactions:
    """All users of a known-truth world; its items repeat, so evaluation keeps the seen ones."""
    items = world.sample()  # (n_users, length)
    item_ids = np.arange(world.n_items + 1)
    return Interactions(
        name=name,
        items=items.ravel(),
        offsets=np.arange(len(items) + 1, dtype=np.int64) * items.shape[1],
        user_ids=np.arange(1, len(items) + 1),
        item_ids=item_ids,
        sha256=_sha256(items.tobytes() + world.popularity.tobytes()),
        tie_rule="none: the world is ordered",
        exclude_seen=False,
        titles=world.item_names,
        genres=world.item_genre_names,
        world=world,
    )


def describe(interactions: Interactions) -> pd.DataFrame:
    """One row: counts, density (interactions / users / items), lengths of the histories, and the
    share of all interactions before a user's last 200, which SASRec's windows do not reach.
    """
    users, items, lengths = interactions.n_users, interactions.n_items, interactions.lengths
    row = {
        "users": users,
        "items": items,
        "interactions": interactions.n_interactions,
        "density": interactions.n_interactions / users / items,
        "median length": float(np.median(lengths)),
        "mean length": lengths.mean(),
        "longest": lengths.max(),
        "beyond the last 200": np.maximum(lengths - 200, 0).sum() / lengths.sum(),
    }
    return pd.DataFrame(row, index=[interactions.name])


# --- named data sets: local folder, data/, download; always verified -----------------------------


class _Unavailable(InputError):
    """A named file is in no folder and cannot be downloaded."""


def _registry() -> dict[str, Any]:
    """The named data sets; empty where the package is installed without the project's folders."""
    path = _DATA / "registry.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _known() -> str:
    names = " or ".join([*WORLDS, *_registry()])
    return names if _registry() else f"{names} (for others install from a clone: pip install -e .)"


def _load_named(name: str, entry: dict[str, Any], min_user: int, min_item: int) -> Interactions:
    path, data = _fetch(entry["file"], entry["files"][entry["file"]])
    arrays = _parsed(path, data, max(min_user, entry["min_user"]), min_item)
    arrays["tie_rule"] = entry["tie_rule"]
    titles = genres = None
    if "titles" in entry:
        try:
            films, ids = (_fetch(file, entry["files"][file])[1] for file in entry["titles"])
            titles, genres = _film_titles(arrays["item_ids"], films, ids)
        except _Unavailable as error:
            warnings.warn(f"{name} is loaded without titles: {error}", stacklevel=3)
    loaded = Interactions(name, **arrays, titles=titles, genres=genres)
    found = (loaded.n_users, loaded.n_items, loaded.n_interactions)
    expected = (entry["users"], entry["items"], entry["interactions"])
    if min_user <= entry["min_user"] and min_item == 1 and found != expected:
        raise InputError(
            f"{path}: users, items and interactions are {found}, not the {expected} of "
            "data/registry.json; correct the registry."
        )
    return loaded


def _fetch(file: str, source: dict[str, str]) -> tuple[Path, bytes]:
    """Path and verified bytes of a named file."""
    folders = [_DATA]
    if given := os.environ.get("GSAS_LAB_DATA"):
        folders.insert(0, Path(given).expanduser())
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
    if (found := _sha256(data)) != source["sha256"]:
        raise InputError(
            f"{where}: the checksum (SHA-256) is {found[:12]}…, not {source['sha256'][:12]}… as in "
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
    except (OSError, KeyError, zipfile.BadZipFile) as error:
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


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file with the interactions inside it.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: correct it, or give {_known()}.") from None


def _write_atomically(path: Path, data: bytes) -> None:
    """All or nothing: a reader never sees half a file, and a failure leaves none behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _parsed(path: Path, data: bytes, min_user: int, min_item: int) -> dict[str, Any]:
    """The fields of Interactions that come from the file, from the cache where it has them.

    The cache's name is a hash of all that the arrays depend on, so a changed file is never taken
    for the old one. A cache that cannot be read is rebuilt; one that cannot be written is not.
    """
    sha256 = _sha256(data)
    key = _sha256(repr((_CACHE_FORMAT, sha256, path.suffix, min_user, min_item)).encode())[:32]
    folder = os.environ.get("GSAS_LAB_CACHE") or _DATA.parent / "outputs" / "cache"
    cache = Path(folder).expanduser() / f"{path.stem}-{key}.npz"
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as stored:
            arrays = {field: stored[field] for field in _CACHED}
    except Exception:  # noqa: BLE001 (absent or damaged in any way: the file itself is at hand)
        arrays = _parse(path, data, min_user, min_item)
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        with contextlib.suppress(OSError):  # a read-only folder or a full disk only costs the cache
            _write_atomically(cache, packed.getvalue())
    return arrays | {"sha256": sha256, "tie_rule": str(arrays["tie_rule"])}


def _parse(path: Path, data: bytes, min_user: int, min_item: int) -> dict[str, np.ndarray]:
    """Bytes -> items, offsets, user_ids, item_ids, tie_rule."""
    form = _FORMS.get(path.suffix.lower(), _USER_ITEM)
    table = _read_table(path, data, form)
    if table.empty:
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    try:
        users, user_ids = _number(table["user"], form.integers)  # (n,) in 0…, sorted ids
        items, item_ids = _number(table["item"], form.integers)
        keys = [_times(table["timestamp"]), users] if "timestamp" in table else [users]
    except _BadRow as bad:
        place = f"{table.index.name} {table.index[bad.row]}"
        raise InputError(f"{path}, {place}: {bad}; expected {form.words}.") from None
    order = np.lexsort(keys)  # stable; the last key is the first to sort by
    users, items = users[order], items[order]
    keep = _core(users, items, min_user, min_item)
    if not keep.any():
        raise InputError(f"{path}: min_user = {min_user}, min_item = {min_item} keep nothing.")
    users_left, users = np.unique(users[keep], return_inverse=True)
    items_left, items = np.unique(items[keep], return_inverse=True)
    return {
        "items": (items + 1).astype(np.int32),
        "offsets": np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64),
        "user_ids": user_ids[users_left],
        "item_ids": np.concatenate([np.zeros(1, item_ids.dtype), item_ids[items_left]]),
        "tie_rule": np.array(_BY_TIME if "timestamp" in table else _BY_FILE),
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


# --- bytes -> table; its index holds the place in the file, for messages -------------------------


def _read_table(path: Path, data: bytes, form: _Form) -> pd.DataFrame:
    """Columns user, item and, if the file has one, timestamp."""
    if form.separator is None:
        try:
            table = pd.read_parquet(io.BytesIO(data)).reset_index(drop=True)
        except (ValueError, OSError, ImportError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{path} cannot be read as parquet ({reason}): replace it.") from error
        table.index = pd.RangeIndex(1, len(table) + 1, name="row")
        return _choose_columns(path, table)
    if b"\0" in data:
        raise InputError(f"{path} is binary or UTF-16, not text in UTF-8: convert it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not text in UTF-8; convert the file.") from None
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    if form.separator == "::":  # pandas is fast with single characters only
        text = text.replace("::", "\t")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text),
                sep="\t" if form.separator == "::" else form.separator,
                names=form.columns,
                header=None if form.columns else 0,
                index_col=False,  # else one field too many would shift the columns
                dtype=str,
                keep_default_na=False,  # "NA" may be somebody's id
                na_values=[""],
                skip_blank_lines=False,  # so that rows count lines
                quoting=form.quoting,
            )
    except pd.errors.EmptyDataError:  # a first line without a character, a second with some
        raise InputError(f"{path}, line 1: no names of columns; expected {form.words}.") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        # pandas only warns where the first row is too long, and does not say where.
        found = re.search(r"in line (\d+)|data with index_col", str(error))
        if found is None:
            raise InputError(f"{path} cannot be parsed ({str(error).strip()}).") from error
        number = int(found[1] or (1 if form.columns else 2))
        raise InputError(
            f"{path}, line {number}: too many fields; expected {form.words}."
        ) from None
    table.index += 1 if form.columns else 2
    if form.quoting == csv.QUOTE_MINIMAL and '"' in text:  # a quoted field may span lines
        breaks = sum(table[column].str.count("\n").fillna(0) for column in table)
        table.index += np.cumsum(breaks).astype(int)
    table.index.name = "line"
    return _choose_columns(path, table.dropna(how="all"))


def _choose_columns(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    chosen: dict[Any, str] = {}
    for wanted, accepted in _COLUMN_NAMES.items():
        plain = [str(name).split(":")[0].strip().lower().replace("_", "") for name in table.columns]
        found = [name for name, x in zip(table.columns, plain, strict=True) if x in accepted]
        if len(found) > 1 or not found and wanted != "timestamp":
            raise InputError(
                f"{path} needs one {wanted} column ({', '.join(sorted(accepted))}), but its header "
                f"has {', '.join(map(repr, found or table.columns))}: rename the columns."
            )
        chosen |= dict.fromkeys(found, wanted)
    return table[list(chosen)].rename(columns=chosen)


class _BadRow(Exception):
    def __init__(self, bad: np.ndarray, what: str) -> None:
        super().__init__(what)
        self.row = int(np.argmax(bad))  # the first


def _number(ids: pd.Series, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) -> their places (n,) among the sorted distinct ids, and these."""
    codes, values = pd.factorize(ids)  # in order of appearance; -1 = missing
    if (codes < 0).any():
        raise _BadRow(codes < 0, f"the {ids.name} is missing")
    texts = [str(value).strip() for value in values]
    numbers = [int(text) for text in texts if re.fullmatch("-?[0-9]{1,99}", text)]

    def refuse(bad: list[bool], why: str) -> None:
        if any(bad):
            code = bad.index(True)
            raise _BadRow(codes == code, f"the {ids.name} {texts[code][:40]!r} {why}")

    if integers:
        refuse([not re.fullmatch("-?[0-9]{1,99}", text) for text in texts], "is not an integer")
    distinct = np.array(texts)
    if len(numbers) == len(texts):
        refuse([number < 0 for number in numbers], "is negative")
        refuse([number > _MAX_ID for number in numbers], f"is above {_MAX_ID}")
        if integers or len(set(numbers)) == len(texts):  # elsewhere "7" and "007" are two ids
            distinct = np.array(numbers)
    distinct, place = np.unique(distinct, return_inverse=True)
    return place[codes], distinct


def _times(times: pd.Series) -> np.ndarray:
    """Numbers, or dates in ISO 8601 (n,) -> their dense ranks (n,)."""
    if pd.api.types.is_string_dtype(times):
        numbers = pd.to_numeric(times, errors="coerce")
        dates = numbers.isna().all()
        times = (
            pd.to_datetime(times, format="ISO8601", utc=True, errors="coerce") if dates else numbers
        )
    missing = times.isna().to_numpy()
    if missing.any():
        raise _BadRow(missing, "the timestamp is neither a number nor a date as in ISO 8601")
    return times.rank(method="dense").to_numpy()
