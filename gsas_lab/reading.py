"""Bytes, or a table in memory -> who, what and when, each exactly as it is written there.

The form follows from the file's suffix:

    .txt and all others   "user item" lines, two integers, oldest first (as for SASRec and BERT4Rec)
    .csv .tsv .parquet    columns user, item and, if there is one, time, by any usual name; separated
                          by commas (tabs), or by what the header, or Excel's "sep=;", has instead
    .jsonl .ndjson .json  an object with these on each line
    .inter                RecBole: tab-separated, header "name:type"
    .data .dat            GroupLens u.data (tabs) and ratings.dat ("::"): user, item, rating, time
    .mat                  MATLAB: one matrix of user, item, category, rating, helpfulness, time
    …_totalCheckins.txt   SNAP's Gowalla: user, time, latitude, longitude, place, with tabs

Each of them may be packed: .gz .bz2 .xz .zst, or .zip with one file inside, whose suffix then counts.
What cannot be told for certain is refused, with the line: nothing is guessed, dropped or rounded.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import uuid
import warnings
import zipfile
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain, islice
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd

from gsas_lab.errors import InputError

LONGEST_ID = 1000  # characters: a longer one is a damaged file, such as one with an open quote
FILE_ORDER = "none"  # time="none": the file's order, whatever its columns say
_MAX_INTEGER = 2**31 - 1  # of an id where a form has integers
# Bytes, or a hundredfold, which is more than interactions shrink; bombs shrink more.
_UNPACKED = 1 << 28
_PIECE = 1 << 22  # bytes of a packed or long file read at once
_SAMPLE = 1000  # rows that decide whether a column that is not taken looks like a time


class Columns(NamedTuple):
    """Names of columns as a user gives them; None: found by the usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None


class Table(NamedTuple):
    """One interaction a row, in the order of the file."""

    users: np.ndarray  # (n,) int64 places among user_ids
    items: np.ndarray  # (n,) int64 places among item_ids
    times: np.ndarray | None  # (n,) int64: later is larger
    user_ids: np.ndarray  # sorted and distinct: int64, or text (object)
    item_ids: np.ndarray
    order: str  # what orders a user's interactions, and equal times
    unused: tuple[str, ...]  # names of the other columns
    moments: np.ndarray | None = None  # (n,) float64: seconds since 1970, or the file's own numbers


class _Form(NamedTuple):
    """How a text is written."""

    separator: str | None  # None: blanks
    columns: list[str] | None  # None: a header names them
    words: str  # what a line holds
    quoted: bool = False  # may fields stand in quotes, as in RFC 4180?


_USER_ITEM = _Form(None, ["user", "item"], "two integers, user and item, on each line")
_RATINGS = ["user", "item", "rating", "timestamp"], "user, item, rating and timestamp"
_NAMED = None, "the columns that the header names, with user and item"
_JSON = _Form(None, None, "one JSON object on each line, with user and item")
_OF_FRAME = "a column of users and one of items"
_FORMS = {
    ".data": _Form("\t", *_RATINGS),
    ".dat": _Form("::", *_RATINGS),
    ".csv": _Form(",", *_NAMED, True),
    ".tsv": _Form("\t", *_NAMED, True),
    ".inter": _Form("\t", *_NAMED),
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".json": _JSON,
}


def from_bytes(path: Path, data: bytes, named: Columns) -> Table:
    """The content of a file. Raises InputError for whatever is not as the form says, with the line."""
    name, pieces = _unpacked(path, data)
    if name.endswith(CHECK_INS):
        return _check_ins(path, pieces, named)
    data = b"".join(pieces)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        return from_frame(_parquet(path, data), f"{path}", named)
    if suffix == ".mat":
        return from_frame(_matlab(path, data), f"{path}", named)
    return _from_text(path, data, _FORMS.get(suffix, _USER_ITEM), named)


def from_frame(frame: pd.DataFrame, where: str, named: Columns) -> Table:
    """The content of a table in memory; InputError as for files, its rows counted from 1."""
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index(allow_duplicates=True)
    if not len(frame):
        raise InputError(f"{where} is empty: give at least one interaction.")
    try:
        header = [str(name) for name in frame.columns]
        roles = _roles(where, header, lambda at: frame.iloc[:_SAMPLE, at].dropna().tolist(), named)
        cells = {kind: frame.iloc[:, at] for kind, at in roles.columns.items()}
        places = range(1, len(frame) + 1)
        return _table(where, _Rows(header, cells, "row", places, _OF_FRAME, False), roles)
    except InputError:
        raise
    except Exception as error:  # types of columns have no end, and text may be damaged inside
        raise InputError(
            f"{where} has columns that cannot be read ({type(error).__name__}: {_reason(error)}): "
            "give ids as integers or text."
        ) from None


def _parquet(path: Path, data: bytes) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(data), engine="pyarrow", page_checksum_verification=True)
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install pyarrow.") from None
    except Exception as error:  # Arrow raises errors of forty kinds for damaged files
        raise InputError(
            f"{path} cannot be read as parquet ({_reason(error)}): replace it."
        ) from None


_MATLAB = ["user", "item", "category", "rating", "helpfulness", "time"]


def _matlab(path: Path, data: bytes) -> pd.DataFrame:
    """The one matrix of whole numbers in a MATLAB file: the form of Ciao and Epinions."""
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged headers: what follows them is judged
            found = [x for name, x in loadmat(io.BytesIO(data)).items() if name[:2] != "__"]
    except Exception as error:  # scipy raises errors of a dozen kinds for damaged files
        raise InputError(
            f"{path} cannot be read as a MATLAB file ({_reason(error)}): replace it."
        ) from None
    whole = len(found) == 1 and isinstance(found[0], np.ndarray)  # a sparse one is none
    if not whole or np.ndim(found[0]) != 2 or np.shape(found[0])[1] != len(_MATLAB):
        told = ", ".join(_MATLAB)
        raise InputError(f"{path} must hold one matrix with the columns {told}: write it so.")
    return pd.DataFrame(found[0], columns=_MATLAB)


def _reason(error: BaseException) -> str:
    lines = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
    return lines[0][:100].rstrip(". ")


# --- packed files --------------------------------------------------------------------------------


def _zst(packed: io.BytesIO) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # Python 3.14
    except ImportError:
        import pyarrow  # which reads parquet, too

        return pyarrow.CompressedInputStream(packed, "zstd")
    return zstd.open(packed)


_PACKED: dict[str, Callable[[io.BytesIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zst,
}


def _unpacked(path: Path, data: bytes) -> tuple[str, Iterator[bytes]]:
    """A file's name and bytes, piece by piece; of a packed one those of what is inside."""
    packing = path.suffix.lower()
    if packing not in (*_PACKED, ".zip"):
        return path.name, iter([data])
    if packing != ".zip":
        return path.stem, _pieces(path, data, _PACKED[packing])
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = _only_member(path, archive)
    except InputError:
        raise
    except Exception as error:  # what damaged archives raise is of a dozen kinds
        raise _packed_badly(path, error) from None
    return name, _pieces(path, data, lambda packed: zipfile.ZipFile(packed).open(name))


def _pieces(path: Path, data: bytes, unpack: Callable[[io.BytesIO], IO[bytes]]) -> Iterator[bytes]:
    left = most = max(_UNPACKED, 100 * len(data))
    try:
        with unpack(io.BytesIO(data)) as file:
            while left >= 0 and (piece := file.read(_PIECE)):
                yield piece
                left -= len(piece)
    except ImportError:
        raise InputError(
            f"{path}: .zst needs pyarrow: pip install pyarrow, or unpack it."
        ) from None
    except Exception as error:
        raise _packed_badly(path, error) from None
    if left < 0:
        raise InputError(f"{path} unpacks to over {most >> 20} MiB: unpack it yourself.")


def _packed_badly(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be unpacked ({_reason(error)}): get it again, or unpack it yourself."
    )


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    names = [name for name in names if not re.search(r"(^|/)(__MACOSX/|\.[^/])", name)]
    if not names:
        raise InputError(f"{path} holds no file: give one that holds the interactions.")
    if len(names) > 1:
        raise InputError(
            f"{path} holds {len(names)} files ({', '.join(names[:4])}): unpack it and give one."
        )
    return names[0]


# --- check-ins -----------------------------------------------------------------------------------

CHECK_INS = "_totalCheckins.txt"  # the end of such a file's name
_CHECK_IN = re.compile(
    rb"^(\d{1,18})\t(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)Z\t[^\t\n]*\t[^\t\n]*\t(\d{1,18})\r?$", re.M
)
_CHECK_IN_WORDS = "user, time as 2010-10-19T23:55:27Z, latitude, longitude and place, with tabs"
_OF_CHECK_INS = ["user", "timestamp", "latitude", "longitude", "item"]


def _check_ins(path: Path, pieces: Iterator[bytes], named: Columns) -> Table:
    """Millions of lines, of which a few megabytes are held as text at once."""
    roles = _roles(f"{path}", _OF_CHECK_INS, lambda at: [], named)
    if roles.columns.items() - {("user", 0), ("item", 4), ("time", 1)}:
        raise InputError(f"{path}: a check-in's columns have their order: name none of them.")
    read, rest, line = [], b"", 1
    for piece in chain(pieces, [b"\n"]):
        for at in range(0, len(piece), _PIECE):
            text, end, rest = (rest + piece[at : at + _PIECE]).rpartition(b"\n")
            if text:
                read.append(_numbers(path, text, line))
            line += bool(end) + text.count(b"\n")
            if len(rest) > _PIECE:
                raise InputError(f"{path}, line {line}: too long; expected {_CHECK_IN_WORDS}.")
    users, times, items = (
        map(np.concatenate, zip(*read, strict=True)) if read else [np.zeros(0)] * 3
    )
    if not len(users):
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, items = np.unique(items, return_inverse=True)
    by_time = times if "time" in roles.columns else None
    return Table(users, items, by_time, user_ids, item_ids, roles.order, roles.unused)


def _numbers(path: Path, text: bytes, line: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines, without the last "\n", the first of them of this number -> users, seconds, items."""
    found = _CHECK_IN.findall(text)
    if len(found) == text.count(b"\n") + 1:
        users, times, items = zip(*found, strict=True)
        ids = np.array([[*map(int, users)], [*map(int, items)]])
        with contextlib.suppress(ValueError):  # no such day
            seconds = np.array(times).astype("datetime64[s]").astype(np.int64)
            if ids.max() <= _MAX_INTEGER:
                return ids[0], seconds, ids[1]
    kept = []
    for number, content in enumerate(text.split(b"\n"), line):
        if content.strip():
            _check_check_in(f"{path}, line {number}", content)
            kept.append(content)
    if not kept:
        return (np.zeros(0, np.int64),) * 3
    return _numbers(path, b"\n".join(kept), line)  # without the blank lines


def _check_check_in(place: str, content: bytes) -> None:
    """InputError, with the reason, for a line that is none."""
    fields = content.decode(errors="replace").rstrip("\r").split("\t")
    few, what = len(fields) < len(_OF_CHECK_INS), ""
    try:
        if len(fields) != len(_OF_CHECK_INS):
            raise ValueError(f"too {'few' if few else 'many'} fields")
        for kind, text in (("user", fields[0]), ("item", fields[-1])):
            what = f"the {kind} "
            _integer(text)
        what = "the timestamp "
        if not _CHECK_IN.fullmatch(content):
            raise ValueError(f"{fields[1][:40]!r} is none")
        np.datetime64(fields[1].rstrip("Z"))
    except ValueError as error:
        raise InputError(f"{place}: {what}{error}; expected {_CHECK_IN_WORDS}.") from None


# --- text -> cells -------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Cells of the columns that are used, and where each row stands."""

    header: Sequence[str]
    cells: dict[str, pd.Series]  # by "user", "item" and, if there is one, "time"
    place: str  # "line" or "row"
    places: Sequence[int]  # (n,) its number
    words: str  # what was expected
    integers: bool  # must ids be integers? Elsewhere they are any text


def _lines(path: Path, data: bytes) -> IO[str]:
    """The lines of a text, each ended by "\n" and read when it is asked for."""
    if b"\0" in data:
        raise InputError(f"{path} is binary or UTF-16, not text in UTF-8: convert it.")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not text in UTF-8; convert the file.") from None
    return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig")


def _from_text(path: Path, data: bytes, form: _Form, named: Columns) -> Table:
    spanning: list[tuple[int, list[str]]] = []  # records of more than one line
    lines = _lines(path, data)
    if form.quoted:
        form, named_first = _separated(form, data)
    if form is _JSON:
        records = _objects(path, lines)
    elif form.quoted and b'"' in data:
        records = _quoted(path, lines, form, spanning)
    else:
        records = _split(lines, form)
    if form.quoted and named_first:
        next(records)
    header = form.columns or next(records, (0, []))[1]
    sample = list(islice(records, _SAMPLE))
    if not sample:
        raise InputError(f"{path} is empty: give a file with at least one interaction.")

    def cells_of(at: int) -> list[str]:
        return [fields[at] for _, fields in sample if len(fields) > at and fields[at]]

    roles = _roles(f"{path}", header, cells_of, named)
    width, at = len(header), tuple(roles.columns.values())
    users, items, times, places = [], [], [], array("q")
    same: dict[Any, Any] = {}  # one string an id, however often it stands in the file
    for line, fields in chain(sample, records):
        if len(fields) != width:
            if max(at) < len(fields):
                many = "few" if len(fields) < width else "many"
                raise InputError(f"{path}, line {line}: too {many} fields; expected {form.words}.")
            fields += [""] * (width - len(fields))  # told below: what is missing
        user, item = fields[at[0]], fields[at[1]]
        users.append(same.setdefault(user, user))
        items.append(same.setdefault(item, item))
        if len(at) > 2:
            times.append(fields[at[2]])
        places.append(line)
    if spanning:
        told = _refuse_swallowed(path, spanning, at, (users, items, times), form.separator or "")
        roles = roles._replace(order=roles.order + told)
    cells = zip(roles.columns, (users, items, times), strict=False)
    series = {kind: pd.Series(column, dtype=object) for kind, column in cells}
    rows = _Rows(header, series, "line", places, form.words, form.columns is not None)
    return _table(f"{path}", rows, roles)


def _separated(form: _Form, data: bytes) -> tuple[_Form, bool]:
    """The form with the separator of this file, and whether its first line says it, as Excel's "sep=;".

    A header without the form's own separator has no two columns: then it is the only other one there.
    """
    first = re.split(rb"[\r\n]", data.lstrip(b"\xef\xbb\xbf \r\n"), maxsplit=1)[0].decode()
    if found := re.fullmatch(r"sep=([,;|\t])[,;|\t ]*", first, re.IGNORECASE):
        return form._replace(separator=found[1]), True
    others = [mark for mark in ",;|\t" if mark in first]
    alone = form.separator not in first and len(others) == 1
    return (form._replace(separator=others[0]) if alone else form), False


def _split(lines: IO[str], form: _Form) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that holds any."""
    blank = f" \t\n{form.separator or ''}"
    for line, content in enumerate(lines, 1):
        if content.strip(blank):
            yield line, content.rstrip("\n").split(form.separator)


def _quoted(
    path: Path, lines: IO[str], form: _Form, spanning: list[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """The same strictly by RFC 4180, of each record the line where it begins."""
    reader = csv.reader(lines, delimiter=form.separator or "", strict=True, skipinitialspace=True)
    begun = 1
    try:
        for fields in reader:
            if any(map(str.strip, fields)):
                yield begun, fields
            if reader.line_num > begun:
                spanning.append((begun, fields))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {begun} cannot be parsed: the quotes of the record that begins there do "
            f"not pair ({error}); close them, or double those inside a field."
        ) from None


def _objects(path: Path, lines: IO[str]) -> Iterator[tuple[int, list[Any]]]:
    """JSON lines: first the keys, then the values of each line, numbers as they are written."""

    def read(line: int, content: str) -> dict[str, Any]:
        try:
            found = json.loads(content, **_AS_WRITTEN)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {line}: no JSON ({_reason(error)}); expected {_JSON.words}."
            ) from None
        if not isinstance(found, dict):
            raise InputError(f"{path}, line {line}: no object; expected {_JSON.words}.")
        return found

    objects = ((n, read(n, x)) for n, x in enumerate(lines, 1) if x.strip())
    sample = list(islice(objects, _SAMPLE))
    keys = list(dict.fromkeys(key for _, found in sample for key in found))
    yield 1, keys
    for line, found in chain(sample, objects):
        yield line, [_scalar(found.get(key)) for key in keys]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


_AS_WRITTEN: Any = {"parse_int": str, "parse_float": str, "object_pairs_hook": _object}


def _scalar(value: Any) -> Any:
    """A value of JSON as text; a tuple, which is no id and no time, for a list and an object."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return (type(value).__name__,) if isinstance(value, list | dict) else value


def _refuse_swallowed(
    path: Path,
    spanning: list[tuple[int, list[str]]],
    columns: Sequence[int],
    cells: Sequence[list[str]],
    separator: str,
) -> str:
    """InputError where a quoted field that spans lines holds what is a row by all its looks.

    So it is where somebody's title begins with a quote and another ends with one: correct by the
    rules of quotes, but rows are gone. Prose in several lines has no ids and no times in the right
    places. What it may have is as many commas: that is told in words, "" where there is none.
    columns, cells: of users, items and, if there are any, times.
    """
    known = [set(column) for column in cells]
    looks = [{_looks(cell) for cell in ids if "\n" not in cell} for ids in known]
    lengths = [{len(cell) for cell in ids} for ids in known]

    def like(pieces: list[str], kind: int, known_too: bool) -> bool:
        piece = pieces[columns[kind]].strip(' "')
        if known_too and piece in known[kind]:
            return True
        return _looks(piece) in looks[kind] and (known_too or len(piece) in lengths[kind])

    def is_row(pieces: list[str]) -> bool:
        ids = like(pieces, 0, True) and like(pieces, 1, True)
        return ids or (len(columns) > 2 and like(pieces, 2, False))

    suspect = 0
    for line, fields in spanning:
        for at, field in enumerate(fields):
            if "\n" not in field:
                continue
            first, *between, last = [part.split(separator) for part in field.split("\n")]
            suspect = suspect or line * any(len(pieces) == len(fields) for pieces in between)
            if max(columns[:2]) > at:  # else the field's first line belongs to its own row
                between.append([*fields[:at], *first])
            if min(columns[:2]) < at:
                between.append([*last, *fields[at + 1 :]])
            if any(is_row(pieces) for pieces in between if len(pieces) == len(fields)):
                raise InputError(
                    f"{path}, line {line}: a quoted field spans lines and swallows rows: close "
                    "its quote, or double those inside a field."
                )
    if suspect:
        return f"; line {suspect} begins a quoted text that holds a line of {len(fields)} fields"
    return ""


def _looks(text: str) -> frozenset[str]:
    """ "B00-x7" -> {"a", "0", "-"}."""
    return frozenset("0" if c.isdigit() else "a" if c.isalpha() else c for c in text)


# --- which column is which -----------------------------------------------------------------------


_USERS = (
    "customer cust client reviewer visitor member account profile player person viewer listener "
    "reader steam buyer shopper subscriber household"
).split()
_ITEMS = (
    "movie film book article product prod track song artist album business game app video show "
    "anime news content document doc post photo poi venue location place hotel listing offer ad "
    "recipe course job sku goods podcast episode restaurant beer joke stock"
).split()
_EVENTS = (
    "event review rating rate click purchase order transaction action interaction checkin comment "
    "log server request view watch play listen visit"
).split()
_DONE = (
    "created added rated clicked viewed watched played listened purchased read ordered posted "
    "submitted occurred happened event"
).split()
# After `_plain`: those of RecTools, RecBole, RePlay, MovieLens, Amazon, H&M, Steam and their like.
# Those of the second set count where none of the first is there: a user_id is the user, though a
# username or a session_id stands beside it.
_USUAL: dict[str, tuple[set[str], set[str]]] = {
    "user": (
        {"user", "users", "userid", "useridx", "userindex", "uid", "authorsteamid"}
        | {x + "id" for x in _USERS},
        {"username", "userhash", "session", "sessionid", "msno", *_USERS},
    ),
    "item": (
        {"item", "items", "itemid", "itemidx", "itemindex", "iid", "asin", "parentasin", "isbn"}
        | {x + "id" for x in _ITEMS},
        {"trackuri", "stockcode", "aid", *_ITEMS},
    ),
    "time": (
        {"time", "timestamp", "timestamps", "ts", "dt", "datetime", "unixtime", "unixtimestamp", "epoch"}
        | {"timestampms", "timestampus", "timestampns", "timems", "timeunix", "timeutc"}
        | {"unixreviewtime", "timestampcreated", "lastwatchdt", "datetimeutc", "epochtime"}
        | {x + "time" for x in _EVENTS[:-5]}  # not of how long somebody watched
        | {x + end for x in _EVENTS for end in ("timestamp", "ts", "datetime")},
        {"date", "tdat", "utc", "created", "createtime", "creationtime", "createdate"}
        | {"creationdate", "createddate", "dateadded", "invoicedate", "dateutc"}
        | {x + "date" for x in _EVENTS} | {x + "at" for x in _DONE},
    ),
}  # fmt: skip
_ACCEPTED = {kind: first | second for kind, (first, second) in _USUAL.items()}
_WHEN = set(
    "time times timestamp timestamps ts date dates datetime dt epoch unix utc when day".split()
)
_NOT_WHEN = set(  # how long or how often, or no time at all
    "zone timezone offset watch play playing spent dwell listen duration elapsed total average avg "
    "mean length loading hours minutes seconds count num number of per used run full part week".split()
)
_OF_ITSELF = set(  # of a user or an item, and not of what one did with the other
    "birth born birthday birthdate release released publication published premiere".split()
)
_NUMBERS = set("id ids code phone number price amount count total size bytes isbn".split())
_WRITTEN_OUT = (  # dates that pandas may not read
    r"(?i).*\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*\b(?:19|20)\d\d\b.*"
    r"|(?:19|20)\d\d(?:\D{1,2}\d{1,2}){1,2}\D?"
)


class _Roles(NamedTuple):
    columns: dict[str, int]  # "user", "item" and, if one is taken, "time" -> place in the header
    order: str  # the rule, in words
    unused: tuple[str, ...]  # names of the other columns


def _plain(name: str) -> str:
    """ "user_id:token", "User-ID" -> "userid"."""
    return re.sub(r"[\W_]", "", name.split(":")[0].lower())


def _roles(
    where: str, header: Sequence[str], cells_of: Callable[[int], list[Any]], named: Columns
) -> _Roles:
    """Which column is which, by what the user says, else by the usual names.

    InputError where one is missing or could be meant in two ways, and where no column is taken as
    time though one looks like it, by its name or by what its cells hold.
    """
    columns: dict[str, int] = {}
    if long := [name for name in header if len(name) > LONGEST_ID]:
        raise InputError(
            f"{where}: the name of a column has {len(long[0]):,} characters: is there a header?"
        )
    for kind, name in named._asdict().items():
        if name is None or (kind == "time" and name == FILE_ORDER and name not in header):
            continue
        found = [at for at, x in enumerate(header) if x == name]
        found = found or [at for at, x in enumerate(header) if _plain(x) == _plain(name)]
        if len(found) != 1:
            raise InputError(
                f"{where} has {len(found) or 'no'} columns '{name}' for {kind}: its header has "
                f"{_list(header)}."
            )
        if found[0] in columns.values():
            raise InputError(f"{where}: column '{name}' cannot be two things: name another.")
        columns[kind] = found[0]
    for kind, usual in _USUAL.items():
        if kind in columns or (kind == "time" and named.time is not None):
            continue
        free = [at for at in range(len(header)) if at not in columns.values()]
        found = next(filter(None, ([a for a in free if _plain(header[a]) in x] for x in usual)), [])
        if len(found) > 1 or (not found and kind != "time"):
            raise InputError(
                f"{where} needs one {kind} column, but its header has "
                f"{_list([header[at] for at in found] or header)}: say which by {kind}='…', or "
                "rename columns."
            )
        if found:
            columns[kind] = found[0]
    others = [at for at in range(len(header)) if at not in columns.values()]
    if "time" in columns:
        name = header[columns["time"]]
        order = f"by the column {name!r}; equal times keep the order of the file (stable sort)"
    elif named.time is not None:
        order = "order of the file, as asked by time='none'"
    else:
        order = "order of the file: it has no times"
        for at in others:
            if _looks_like_time(header[at], cells_of(at)):
                name = header[at][:60]
                raise InputError(
                    f"{where}: column '{name}' looks like a time, but is not of a usual name: say "
                    f"time='{name}', or time='none' for the order of the file."
                )
    unused = [header[at] for at in others if header[at].strip()]
    return _Roles(columns, order, tuple(x if x.isprintable() else ascii(x)[1:-1] for x in unused))


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:8]) + (", …" if len(names) > 8 else "")


def _looks_like_time(name: str, cells: list[Any]) -> bool:
    """By its name, such as "whenUpdated", or by its cells: dates, seconds since 1970 and so on."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.split(":")[0]).lower()
    words = set(re.split(r"[\W_\d]+", parts))
    if words & _OF_ITSELF or not cells:
        return False
    if words & _WHEN and not words & _NOT_WHEN:
        return True
    if all(isinstance(cell, date | np.datetime64) for cell in cells):
        return True
    texts = pd.Series([str(cell).strip()[:60] for cell in cells], dtype=object)
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all():
        if (words & _NUMBERS or _plain(name).endswith("id")) and not words & _WHEN:
            return False
        if any(numbers.between(6.3e8 * unit, 2.6e9 * unit).all() for unit in (1, 1e3, 1e6, 1e9)):
            return True  # 1990 to 2052
        if not numbers.between(19900101, 20521231).all():
            return False
        return bool(pd.to_datetime(texts, format="%Y%m%d", errors="coerce").notna().all())
    if texts.str.fullmatch(_WRITTEN_OUT).all():
        return True
    if not texts.str.fullmatch(r"(?=.*\d.*\D.*\d).{8,}").all():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(pd.to_datetime(texts, format="mixed", utc=True, errors="coerce").notna().all())


# --- cells -> numbers ----------------------------------------------------------------------------


class _BadRow(Exception):
    """What is wrong, with the first of the rows where `bad` is True."""

    def __init__(self, bad: Any, what: str) -> None:
        super().__init__(what)
        self.row = int(np.argmax(bad))


def _table(where: str, rows: _Rows, roles: _Roles) -> Table:
    try:
        users, user_ids = _ids("user", rows.cells["user"], rows.integers)
        items, item_ids = _ids("item", rows.cells["item"], rows.integers)
        if user_ids.dtype == item_ids.dtype == object:
            again = np.ones(len(users), bool)
            for kind, codes, ids in (("user", users, user_ids), ("item", items, item_ids)):
                names = {rows.header[roles.columns[kind]], *_ACCEPTED[kind]}
                again &= np.array([x in names or _plain(x) in names for x in ids.tolist()])[codes]
            if again.any():
                raise _BadRow(again, "the header is repeated inside the file")
        times, moments = _times(rows.cells["time"]) if "time" in rows.cells else (None, None)
    except _BadRow as bad:
        place = f"{rows.place} {rows.places[bad.row]}"
        raise InputError(f"{where}, {place}: {bad}; expected {rows.words}.") from None
    return Table(users, items, times, user_ids, item_ids, roles.order, roles.unused, moments)


def _ids(kind: str, cells: pd.Series, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) -> their places (n,) among the sorted distinct ids, and these.

    An id is text, without blanks around it. Where all are integers as a program writes them, without
    sign and leading zeros and of at most 18 digits, they are int64 and sort by number: the text is
    not changed by that. In the forms that have integers, "007" is 7.
    """
    codes, values = _distinct(kind, cells)
    if cells.dtype in (np.float16, np.float32):
        bits = 11 if cells.dtype == np.float16 else 24
        if (far := cells.abs() >= 2**bits).any():  # where they skip integers
            raise _BadRow(far, f"the {kind} is a float beyond 2^{bits}, where two ids may be one")
    texts = []
    for code, value in enumerate(values):
        try:
            texts.append(_integer(_id_text(value)) if integers else _id_text(value))
        except ValueError as error:
            raise _BadRow(codes == code, f"the {kind} {error}") from None
    distinct = np.empty(len(texts), object)
    distinct[:] = texts
    if all(map(re.compile("0|[1-9][0-9]{0,17}").fullmatch, texts)):
        distinct = distinct.astype(np.int64)
    distinct, place = np.unique(distinct, return_inverse=True)
    return place[codes], distinct


def _distinct(kind: str, cells: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Codes (n,) and the value of each, in order of appearance."""
    try:
        codes, values = pd.factorize(cells)
    except TypeError:
        bad = [not isinstance(value, Hashable) for value in cells]
        raise _BadRow(bad, f"the {kind} is a list or an object") from None
    if (codes < 0).any():
        raise _BadRow(codes < 0, f"the {kind} is missing")
    return codes, list(values)


def _id_text(value: Any) -> str:
    """An id of any type as text; ValueError, with the reason, for what is no id."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError("is bytes that are no text in UTF-8") from None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            raise ValueError("is missing")
        if len(text) > LONGEST_ID:
            raise ValueError(f"has {len(text):,} characters, more than the {LONGEST_ID:,} of an id")
        if "\n" in text or "\r" in text:
            raise ValueError(f"{text[:40]!r} spans lines")
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise ValueError("is no text in UTF-8")
        return text
    if isinstance(value, bool | np.bool_):
        raise ValueError("is true or false, no id")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        value = Decimal(value) if isinstance(value, Decimal) else float(value)
        if abs(value) < 2**53 and value == int(value):  # beyond, floats skip integers
            return str(int(value))
        raise ValueError(f"{str(value)[:40]} is no whole number")
    if isinstance(value, uuid.UUID):
        return str(value)
    kind = "list or an object" if isinstance(value, tuple) else type(value).__name__
    raise ValueError(f"is a {kind}, no id")


def _integer(text: str) -> str:
    if not re.fullmatch("-?[0-9]+", text):
        raise ValueError(f"{text[:40]!r} is not an integer")
    if text[0] == "-":
        raise ValueError(f"{text[:40]!r} is negative")
    text = text.lstrip("0") or "0"
    if len(text) > 10 or int(text) > _MAX_INTEGER:
        raise ValueError(f"{text[:40]!r} is above {_MAX_INTEGER}")
    return text


# --- times ---------------------------------------------------------------------------------------

_NO_TIME = "the timestamp is neither a number nor a date as in ISO 8601"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_ISO = re.compile(
    r"([0-9]{4})(?:([-/])([0-9]{1,2})(?:\2([0-9]{1,2})|$)|([0-9]{2})([0-9]{2})(?=T))"
    r"(?:(?:T| +)([0-9]{1,2})(?::?([0-9]{2})(?::?([0-9]{2})(?:[.,]([0-9]+))?)?)?)?"
    r" *(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)


def _times(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of any size, or dates in ISO 8601 (n,) -> their ranks (n,), compared exactly, and what
    they say in float64: see `_seconds`.
    """
    missing = cells.isna().to_numpy()
    if missing.any():
        raise _BadRow(missing, _NO_TIME)
    if isinstance(cells.dtype, np.dtype | pd.DatetimeTZDtype) and cells.dtype.kind in "iufM":
        numbers = (cells.astype("int64") if cells.dtype.kind == "M" else cells).to_numpy()
        if not np.isfinite(numbers).all():
            raise _BadRow(~np.isfinite(numbers), _NO_TIME)
        moments = numbers.astype(float)
        if cells.dtype.kind == "M":
            moments = (
                pd.to_datetime(cells, utc=True).dt.as_unit("ns").astype("int64").to_numpy() / 1e9
            )
        return np.unique(numbers, return_inverse=True)[1], _seconds(
            moments, cells.dtype.kind == "M"
        )
    texts = cells.tolist()
    if all(type(text) is str and 0 < len(text) < 19 for text in texts):
        if (text := "".join(texts)).isdigit() and text.isascii():  # as mostly, and fast
            numbers = cells.astype(np.int64).to_numpy()
            return np.unique(numbers, return_inverse=True)[1], _seconds(numbers.astype(float))
    codes, values = _distinct("timestamp", cells)
    keys, kinds = [], []
    for code, value in enumerate(values):
        try:
            key, kind = _moment(_time_text(value))
        except (ValueError, OverflowError):
            raise _BadRow(codes == code, _NO_TIME) from None
        keys.append(key)
        kinds.append(kind)
    if len(set(kinds)) > 1:
        other = next(code for code, kind in enumerate(kinds) if kind != kinds[0])
        raise _BadRow(codes == other, f"{kinds[other]}, while the first time is {kinds[0]}")
    ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    dated = bool(kinds) and kinds[0].startswith("a date")
    # Dates are counted from the year 1.
    said = [key[0] - 62_135_596_800 if dated else float(key) for key in keys]
    moments = _seconds(np.array(said, float), dated)
    return np.array([ranks[key] for key in keys], np.int64)[codes], moments[codes]


def _seconds(numbers: np.ndarray, dated: bool = False) -> np.ndarray:
    """Seconds since 1970 where all are these, or milli-, micro- or nanoseconds, of 1990 to 2052; else
    as they are.
    """
    for unit in () if dated else (1e3, 1e6, 1e9):
        if len(numbers) and 6.3e8 * unit <= numbers.min() <= numbers.max() <= 2.6e9 * unit:
            return numbers / unit
    return numbers


def _time_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    if isinstance(value, bool | np.bool_):
        return ""
    if isinstance(value, np.floating):
        return repr(float(value))
    return value.isoformat() if isinstance(value, date) else str(value).strip()


def _moment(text: str) -> tuple[Any, str]:
    """A key that orders times exactly, and what kind of time it is; ValueError for what is none."""
    if _NUMBER.fullmatch(text):
        return (int(text) if text.isdigit() else Decimal(text)), "a number"
    if not (found := _ISO.fullmatch(text)):
        raise ValueError(text)
    year, _, month, day, month_2, day_2, hour, minute, second, fraction, zone = found.groups()
    zone = "+00:00" if zone in ("Z", "z", "UTC") else zone or ""
    day = f"{month or month_2:0>2}-{day or day_2 or '1':0>2}"
    clock = f"{hour or '0':0>2}:{minute or '00'}:{second or '00'}"
    moment = datetime.fromisoformat(f"{year}-{day}T{clock}{zone}")
    since = moment - datetime(1, 1, 1, tzinfo=UTC if zone else None)
    # Seconds, and the digits behind the point: these compare as text.
    return (since // timedelta(seconds=1), (fraction or "").rstrip("0")), (
        "a date with a time zone" if zone else "a date without a time zone"
    )
