"""Files and downloads -> (user, item, order): verified, filtered, remapped, with titles.

A data set is `items`, all users' histories one after another, and `offsets`, where each begins.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from gsas_lab.errors import InputError
from gsas_lab.worlds import World

PAD = 0  # the item that is none
KNOWN_TRUTH = "known-truth"
ROOT = Path(__file__).resolve().parent.parent
_CACHE_FORMAT = 1
_FILE_ORDER = "none: the order of the file"
_STABLE = "stable sort by timestamp, equal ones in the order of the file"
_COLUMNS = {
    "user": ("user", "user_id", "userid"),
    "item": ("item", "item_id", "itemid", "movieid", "movie_id"),
    "timestamp": ("timestamp", "ts", "time"),
}


@dataclass(frozen=True)
class Interactions:
    """Who took what, in order."""

    name: str
    items: np.ndarray  # (n_interactions,) int32 in 1…n_items; user after user, oldest first
    offsets: np.ndarray  # (n_users + 1,) int64; user u has items[offsets[u]:offsets[u + 1]]
    user_ids: np.ndarray  # (n_users,) ids as in the file
    item_ids: np.ndarray  # (n_items + 1,) ids as in the file; entry 0 is padding
    sha256: str  # of the source file, of the arrays for a known-truth world
    tie_rule: str  # how equal timestamps were ordered
    exclude_seen: bool = True  # the data set's convention at evaluation; False where items repeat
    titles: np.ndarray | None = None  # (n_items + 1,)
    genres: np.ndarray | None = None  # (n_items + 1,), "|" between several
    world: World | None = None  # only where the truth is known

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids) - 1

    @property
    def n_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """(n_users,) interactions of each user."""
        return np.diff(self.offsets)

    def history(self, user: int) -> np.ndarray:
        """Items of user number `user` (0…n_users − 1), oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def title(self, item: int) -> str:
        """The item's title, or its id in the file where there is none."""
        return str(self.item_ids[item] if self.titles is None else self.titles[item])


def load(name_or_path: str | Path, *, min_user: int = 1, min_item: int = 1) -> Interactions:
    """A data set by name ("known-truth", "ml-1m", "beauty", "video-games") or from a file.

    A named file is looked for in $GSAS_LAB_DATA, then in data/, then downloaded, and always checked
    against its SHA-256. Other files, by their name: .csv, .tsv, .parquet, .inter (RecBole),
    ratings.dat and u.data (GroupLens) have timestamps and are sorted by them, stably; any other is
    read as "user item" lines in order. Items become 1…n_items and users 0…n_users − 1, both in the
    order of their ids.

    min_user, min_item: drop users and items with fewer interactions, again and again until none is
    left to drop.

    Raises InputError: one sentence on what is wrong, where, and what to do.
    """
    if str(name_or_path) == KNOWN_TRUTH:
        return from_world(World())
    registry = _registry()
    entry = registry.get(str(name_or_path), {})
    if "users" in entry:
        path, name = find(str(name_or_path)), str(name_or_path)
    else:
        path = Path(name_or_path)
        name = path.stem
        if not path.exists():
            known = ", ".join([KNOWN_TRUTH, *(n for n, e in registry.items() if "users" in e)])
            raise InputError(
                f"'{name_or_path}' is neither a file nor a known data set: give a path, or one of "
                f"{known}."
            )
    content = _read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    min_user = max(min_user, entry.get("min_user", 1))
    key = f"{name}-{digest[:16]}-{min_user}-{min_item}-{_kind(path)}-v{_CACHE_FORMAT}"
    loaded = _from_cache(key)
    if loaded is None:
        users, items, tie_rule = _parse(path, content)
        loaded = _arrays(users, items, min_user, min_item, path) | {"tie_rule": tie_rule}
        _to_cache(key, loaded)
    result = Interactions(
        name=name,
        sha256=digest,
        **{key: value for key, value in loaded.items() if key != "tie_rule"},
        tie_rule=entry.get("tie_rule", str(loaded["tie_rule"])),
    )
    if name == "ml-1m" and entry:
        result = _with_film_titles(result)
    return result


def from_world(world: World) -> Interactions:
    """The users of a known-truth world; items repeat, so seen ones are not excluded."""
    items = world.sample()
    return Interactions(
        name=KNOWN_TRUTH,
        items=items.ravel(),
        offsets=np.arange(len(items) + 1) * items.shape[1],
        user_ids=np.arange(1, len(items) + 1),
        item_ids=np.arange(world.n_items + 1),
        sha256=hashlib.sha256(items.tobytes() + world.popularity.tobytes()).hexdigest(),
        tie_rule="none: the world draws in order",
        exclude_seen=False,
        titles=world.item_names,
        genres=world.item_genre_names,
        world=world,
    )


def describe(interactions: Interactions) -> pd.DataFrame:
    """One row: sizes, density, lengths of histories, share beyond each user's last 200."""
    lengths = interactions.lengths
    return pd.DataFrame(
        {
            "users": interactions.n_users,
            "items": interactions.n_items,
            "interactions": interactions.n_interactions,
            "density": interactions.n_interactions / interactions.n_users / interactions.n_items,
            "median length": int(np.median(lengths)),
            "mean length": lengths.mean(),
            "longest": lengths.max(),
            "beyond the last 200": np.maximum(lengths - 200, 0).sum() / lengths.sum(),
        },
        index=[interactions.name],
    )


# --- finding files -------------------------------------------------------------------------------


def find(name: str) -> Path:
    """The verified file of a registered name: $GSAS_LAB_DATA, then data/, then a download."""
    entry = _registry()[name]
    folders = [Path(folder) for folder in [os.environ.get("GSAS_LAB_DATA")] if folder]
    for folder in [*folders, ROOT / "data"]:
        path = folder / entry["file"]
        if path.is_file():
            found = hashlib.sha256(_read_bytes(path)).hexdigest()
            if found != entry["sha256"]:
                raise InputError(
                    f"{path} is not the known file of '{name}' (sha256 {found[:12]}, expected "
                    f"{entry['sha256'][:12]}): delete it and load again to download it."
                )
            return path
    return _download(name, entry)


def _download(name: str, entry: dict) -> Path:
    try:
        import pooch
    except ImportError:
        raise InputError(
            f"'{name}' is not on this machine and downloading needs pooch: install it, or put "
            f"{entry['file']} into {ROOT / 'data'}."
        ) from None
    try:
        got = pooch.retrieve(
            entry["url"],
            known_hash=None if "member" in entry else f"sha256:{entry['sha256']}",
            processor=pooch.Unzip([entry["member"]]) if "member" in entry else None,
            path=pooch.os_cache("gsas-lab"),
            progressbar=False,
        )
    except Exception as error:  # requests, sockets and pooch each raise their own
        raise InputError(
            f"'{name}' could not be downloaded from {entry['url']} ({type(error).__name__}): check "
            f"the connection, or put {entry['file']} into {ROOT / 'data'}."
        ) from error
    path = Path(got[0] if isinstance(got, list) else got)
    if hashlib.sha256(_read_bytes(path)).hexdigest() != entry["sha256"]:
        raise InputError(
            f"What {entry['url']} serves is no longer the known file of '{name}': put the right "
            f"{entry['file']} into {ROOT / 'data'}."
        )
    return path


def _registry() -> dict:
    return json.loads((ROOT / "data" / "registry.json").read_text())


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file inside it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    if not content.strip():
        raise InputError(f"{path} is empty: get the file again.")
    return content


# --- reading them --------------------------------------------------------------------------------


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith("u.data"):
        return "u.data"
    suffix = path.suffix.lower().lstrip(".")
    return suffix if suffix in ("csv", "tsv", "parquet", "inter", "dat") else "lines"


def _parse(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray, str]:
    """File content -> (users, items) as written, in order, and the tie rule."""
    import io

    kind = _kind(path)
    if kind == "parquet":
        try:
            return _ordered(pd.read_parquet(io.BytesIO(content)), path)
        except (OSError, ValueError, ImportError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is not a whole parquet file ({type(error).__name__}): get it again."
            ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}): it is binary, cut, or in another "
            "encoding; save it as UTF-8."
        ) from None
    if "\x00" in text:
        raise InputError(f"{path} is binary, not text: get the file again.")
    if kind == "lines":
        users, items = _integers(text, path, None, 2)
        return users, items, _FILE_ORDER
    if kind in ("dat", "u.data"):
        users, items, _, when = _integers(text, path, "::" if kind == "dat" else None, 4)
        order = np.lexsort((when, users))  # stable
        return users[order], items[order], _STABLE
    separator = "," if kind == "csv" else "\t"
    try:
        frame = pd.read_csv(io.StringIO(text), sep=separator)
    except (pd.errors.ParserError, ValueError) as error:
        raise InputError(f"{path} is not a table of columns: {str(error).strip()}.") from error
    return _ordered(frame, path)


def _integers(text: str, path: Path, separator: str | None, width: int) -> list[np.ndarray]:
    """Columns of whole numbers; the first bad line is looked for only when the quick way fails."""
    plain = text.replace(separator, " ") if separator else text
    try:
        flat = np.array(plain.split(), dtype=np.int64)
        lines = plain.count("\n") + (not plain.endswith("\n"))
        quick = flat.size == width * lines
    except (ValueError, OverflowError):
        quick = False
    if not quick:
        rows = []
        for number, line in enumerate(plain.splitlines(), 1):
            parts = line.split()
            if parts and (len(parts) != width or not all(p.lstrip("-").isdigit() for p in parts)):
                raise InputError(
                    f"{path}, line {number}: expected {width} integers, found "
                    f"'{line.strip()[:40]}': correct or remove the line."
                )
            if parts:
                rows.append([min(int(p), 2**62) for p in parts])
        flat = np.array(rows, dtype=np.int64)
    table = flat.reshape(-1, width)
    bad = (table[:, :2] < 0) | (table[:, :2] >= 2**31)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"{path}, line {row + 1}: id {table[row, column]} is outside 0…2147483647: "
            "renumber the ids."
        )
    return list(table.T)


def _ordered(frame: pd.DataFrame, path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """A table with named columns -> (users, items) in order of time."""
    by_name = {str(column).split(":")[0].strip().lower(): column for column in frame.columns}
    found = {
        role: next((by_name[name] for name in names if name in by_name), None)
        for role, names in _COLUMNS.items()
    }
    if found["user"] is None or found["item"] is None:
        raise InputError(
            f"{path} needs columns 'user' and 'item' (and 'timestamp'); it has "
            f"{', '.join(map(str, frame.columns[:8]))}: rename them."
        )
    frame = frame.reset_index(drop=True)
    for column in filter(None, found.values()):
        if frame[column].isna().any():
            row = int(frame[column].isna().to_numpy().argmax())
            raise InputError(f"{path}, data row {row + 1}: '{column}' is empty: fill or remove it.")
        if pd.api.types.is_integer_dtype(frame[column]) and column != found["timestamp"]:
            ids = frame[column].to_numpy()
            if ids.min() < 0 or ids.max() >= 2**31:
                row = int(((ids < 0) | (ids >= 2**31)).argmax())
                raise InputError(
                    f"{path}, data row {row + 1}: id {ids[row]} is outside 0…2147483647: "
                    "renumber the ids."
                )
        elif column != found["timestamp"]:
            frame[column] = frame[column].astype(str)
    tie_rule = _FILE_ORDER
    if found["timestamp"] is not None:
        if not pd.api.types.is_numeric_dtype(frame[found["timestamp"]]):
            try:
                frame[found["timestamp"]] = pd.to_datetime(frame[found["timestamp"]])
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path}: '{found['timestamp']}' holds values that are no times: {error}"
                ) from error
        frame = frame.sort_values([found["user"], found["timestamp"]], kind="stable")
        tie_rule = _STABLE
    return frame[found["user"]].to_numpy(), frame[found["item"]].to_numpy(), tie_rule


def _arrays(
    users: np.ndarray, items: np.ndarray, min_user: int, min_item: int, path: Path
) -> dict[str, np.ndarray]:
    """Ids in order -> remapped, filtered, user after user."""
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    while True:
        enough = np.bincount(item, minlength=len(item_ids))[item] >= min_item
        per_user = np.bincount(user[enough], minlength=len(user_ids))
        keep = enough & (per_user[user] >= min_user)
        if keep.all():
            break
        user, item = user[keep], item[keep]
    if not len(user):
        raise InputError(
            f"{path}: nothing is left with min_user = {min_user} and min_item = {min_item}: "
            "lower them."
        )
    kept_users, user = np.unique(user, return_inverse=True)
    kept_items, item = np.unique(item, return_inverse=True)
    order = np.argsort(user, kind="stable")
    ids = item_ids[kept_items]
    nothing = np.array(["padding"]) if ids.dtype.kind in "OU" else np.zeros(1, ids.dtype)
    return {
        "items": (item[order] + 1).astype(np.int32),
        "offsets": np.concatenate([[0], np.cumsum(np.bincount(user))]),
        "user_ids": _plain(user_ids[kept_users]),
        "item_ids": _plain(np.concatenate([nothing, ids])),
    }


def _plain(ids: np.ndarray) -> np.ndarray:
    return ids.astype(str) if ids.dtype == object else ids  # no pickled objects in the cache


def _with_film_titles(ml_1m: Interactions) -> Interactions:
    """Titles and genres of MovieLens-1M: movies.dat is Latin-1, "id::title (year)::genres"."""
    try:
        films, mapping = find("ml-1m-titles"), find("ml-1m-items")
    except InputError as error:
        warnings.warn(f"MovieLens-1M without film titles: {error}", stacklevel=3)
        return ml_1m
    rows = [line.split("::") for line in films.read_text(encoding="latin-1").splitlines()]
    known = {int(film): (title, genres) for film, title, genres in rows}
    original = dict(np.loadtxt(mapping, dtype=int))
    both = [known[original[item]] for item in ml_1m.item_ids[1:]]
    titles, genres = zip(("padding", ""), *both, strict=True)
    return replace(ml_1m, titles=np.array(titles), genres=np.array(genres))


# --- the cache: parsed arrays, by content --------------------------------------------------------


def _cache_file(key: str) -> Path:
    folder = Path(os.environ.get("GSAS_LAB_CACHE", ROOT / "outputs" / "cache"))
    return folder / f"{key}.npz"


def _from_cache(key: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(_cache_file(key), allow_pickle=False) as saved:
            return dict(saved)
    except Exception:  # absent or broken in any way: parse again
        return None


def _to_cache(key: str, arrays: dict) -> None:
    path = _cache_file(key)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    except OSError:  # a full or read-only disk costs the cache, not the load
        partial.unlink(missing_ok=True)
