"""Bytes, or a table in memory -> who, what and when, each exactly as it is written there.

The form follows from the file's suffix:

    .txt and all others   "user item" lines, two integers, oldest first (as for SASRec and BERT4Rec)
    .csv .tsv .parquet    columns user, item and, if there is one, time, by any usual name
    .inter                RecBole: tab-separated, header "name:type"
    .data .dat            GroupLens u.data (tabs) and ratings.dat ("::"): user, item, rating, time

Each of them may be packed: .gz .bz2 .xz .zst, or .zip with one file inside, whose suffix then counts.
What cannot be told for certain is refused, with the line: nothing is guessed, dropped or rounded.
"""

import bz2
import csv
import gzip
import io
import lzma
import re
import uuid
import zipfile
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from decimal import Decimal
from functools import lru_cache
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd

from gsas_lab.errors import InputError

LONGEST_ID = 1000  # characters: a longer one is a damaged file, such as one with an open quote
NO_TIME = "none"  # time="none": the file's order, whatever its columns say
_MAX_INTEGER = 2**31 - 1  # of an id where a form has integers
_SAMPLE = 1000  # rows that decide whether an unnamed column looks like a time


class Columns(NamedTuple):
    """Names of columns as a user gives them; None: found by the usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None


class Table(NamedTuple):
    """One interaction a row, in the order of the file."""

    users: np.ndarray  # (n,) int64 places among user_ids
    items: np.ndarray  # (n,) int64 places among item_ids
    times: np.ndarray | None  # (n,) int64 ranks: equal times have one
    user_ids: np.ndarray  # sorted and distinct: int64, or text (object)
    item_ids: np.ndarray
    order: str  # what orders a user's interactions, and equal times
    unused: tuple[str, ...]  # names of the other columns


class _Form(NamedTuple):
    """How a text is written."""

    separator: str | None  # None: blanks
    columns: list[str] | None  # None: a header line names them
    words: str  # what a line holds
    quoted: bool = False  # may fields stand in quotes, as in RFC 4180?

    @property
    def integers(self) -> bool:
        """Must ids be integers? Elsewhere they are any text."""
        return self.columns is not None


_USER_ITEM = _Form(None, ["user", "item"], "two integers, user and item, on each line")
_RATINGS = ["user", "item", "rating", "timestamp"], "user, item, rating and timestamp"
_NAMED = None, "the columns that the header names, with user and item"
_FORMS = {
    ".data": _Form("\t", *_RATINGS),
    ".dat": _Form("::", *_RATINGS),
    ".csv": _Form(",", *_NAMED, True),
    ".tsv": _Form("\t", *_NAMED, True),
    ".inter": _Form("\t", *_NAMED),
}
_FRAME = "a column of users and one of items"


def from_bytes(path: Path, data: bytes, named: Columns) -> Table:
    """The content of a file. Raises InputError for whatever is not as the form says, with the line."""
    name, data = _unpacked(path, data)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        return _of_frame(f"{path}", _parquet(path, data), named, "replace it")
    form = _FORMS.get(suffix, _USER_ITEM)
    rows = _rows(path, _text(path, data), form, named)
    return _table(f"{path}", rows, form.integers, form.words)


def from_frame(frame: pd.DataFrame, where: str, named: Columns) -> Table:
    """The content of a table in memory; rows are counted from 1 in messages."""
    return _of_frame(where, frame, named, "correct it")


# --- packed files --------------------------------------------------------------------------------


def _zst(packed: io.BytesIO) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # Python 3.14
    except ImportError:
        import pyarrow  # which reads parquet, too

        return pyarrow.CompressedInputStream(packed, "zstd")
    return zstd.open(packed)


_PACKED: dict[str, Callable[[io.BytesIO], IO[bytes]]] = {
    ".gz": lambda packed: gzip.open(packed),  # type: ignore[dict-item, return-value]
    ".bz2": lambda packed: bz2.open(packed),  # type: ignore[dict-item, return-value]
    ".xz": lambda packed: lzma.open(packed),  # type: ignore[dict-item, return-value]
    ".zst": _zst,
}


def _unpacked(path: Path, data: bytes) -> tuple[str, bytes]:
    """A file's name and bytes; of a packed one those of what is inside."""
    packing = path.suffix.lower()
    if packing not in (*_PACKED, ".zip"):
        return path.name, data
    # A hundredfold is more than interactions shrink; a file made to fill memory shrinks a thousandfold.
    most = max(1 << 28, 100 * len(data))
    try:
        if packing == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name = _only_member(path, archive)
                with archive.open(name) as file:
                    content = file.read(most + 1)
        else:
            name = path.stem
            with _PACKED[packing](io.BytesIO(data)) as file:
                content = file.read(most + 1)
    except InputError:
        raise
    except ImportError:
        raise InputError(
            f"{path}: .zst needs pyarrow: pip install pyarrow, or unpack it."
        ) from None
    except Exception as error:  # what damaged archives raise is of a dozen kinds
        raise InputError(
            f"{path} cannot be unpacked ({_reason(error)}): get it again, or unpack it yourself."
        ) from None
    if len(content) > most:
        raise InputError(f"{path} unpacks to over {most >> 20} MiB: unpack it yourself.")
    return name, content


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    names = [name for name in names if not re.search(r"(^|/)(__MACOSX/|\.)", name)]
    if len(names) != 1:
        raise InputError(
            f"{path} holds {len(names)} files ({', '.join(names[:4])}): unpack it and give one."
        )
    return names[0]


def _reason(error: BaseException) -> str:
    lines = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
    return lines[0][:100].rstrip(". ")


# --- text -> cells -------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Cells of the columns that are used, and where each row stands."""

    cells: dict[str, pd.Series]  # by "user", "item" and, if there is one, "time"
    places: np.ndarray  # (n,) number of the row's line or row
    place: str  # "line" or "row"
    order: str
    unused: tuple[str, ...]
    header: tuple[str, ...] = ()  # of a text that has one
    short: np.ndarray | None = None  # (n,) True where a line has fewer fields than the first


def _text(path: Path, data: bytes) -> str:
    """Text of a file, each line ended by one "\\n"."""
    if b"\0" in data:
        raise InputError(f"{path} is binary or UTF-16, not text in UTF-8: convert it.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not text in UTF-8; convert the file.") from None
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else text + "\n"


def _rows(path: Path, text: str, form: _Form, named: Columns) -> _Rows:
    if form.separator == "::":  # one character is faster, and no field may hold it
        if "\t" in text:
            number = text.count("\n", 0, text.index("\t")) + 1
            raise InputError(f"{path}, line {number}: a tab; expected {form.words}.")
        form = form._replace(separator="\t")
        text = text.replace("::", "\t")
    if form.quoted and '"' in text:
        return _quoted_rows(path, text, form, named)
    return _plain_rows(path, text, form, named)


def _plain_rows(path: Path, text: str, form: _Form, named: Columns) -> _Rows:
    """Lines without quotes: the fields are counted first, then parsed by pandas."""
    fields, filled = _count_fields(text, form.separator)  # of each line
    if form.columns is None and not filled[0]:
        raise InputError(f"{path}, line 1: no names of columns; expected {form.words}.")
    first, _, rest = text.partition("\n")
    header = form.columns or first.split(form.separator)
    numbers = np.flatnonzero(filled) + 1
    if form.columns is None:
        numbers, text = numbers[1:], rest
    fields = fields[numbers - 1]
    if (fields > len(header)).any():
        number = numbers[np.argmax(fields > len(header))]
        raise InputError(f"{path}, line {number}: too many fields; expected {form.words}.")
    if not len(numbers):
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    if not filled.all():
        lines = text.split("\n")
        skipped = 0 if form.columns else 1
        text = "".join(lines[number - 1 - skipped] + "\n" for number in numbers.tolist())

    def read(columns: Iterable[int], rows: int | None = None) -> pd.DataFrame:
        return pd.read_csv(
            io.StringIO(text),
            sep=r"\s+" if form.separator is None else form.separator,
            names=list(range(len(header))),
            header=None,
            index_col=False,
            usecols=list(columns),
            nrows=rows,
            dtype=str,
            keep_default_na=False,  # "NA" may be somebody's id
            na_values=[""],
            skip_blank_lines=False,
            quoting=csv.QUOTE_NONE,
        )

    try:
        sample = read(range(len(header)), _SAMPLE)
        chosen, order, unused = _choose(
            f"{path}", header, lambda column: sample[column].dropna().tolist(), named
        )
        table = read(set(chosen.values()))
    except pd.errors.ParserError as error:
        raise InputError(f"{path} cannot be parsed ({_reason(error)}).") from None
    if len(table) != len(numbers):
        raise InputError(f"{path} cannot be parsed: some of its lines end where no line should.")
    return _Rows(
        {kind: table[column] for kind, column in chosen.items()},
        numbers,
        "line",
        order,
        unused,
        () if form.columns else tuple(header),
        fields < len(header),
    )


def _count_fields(text: str, separator: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Fields of each line, and whether it holds anything but separators and blanks: (lines,)."""
    data = np.frombuffer(text.encode(), np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == 10)[:-1] + 1])

    def per_line(mask: np.ndarray) -> np.ndarray:
        return np.add.reduceat(mask.view(np.uint8), starts, dtype=np.int64)

    blank = (data == 32) | (data == 9) | (data == 10)
    if separator is None:
        begins = ~blank
        begins[1:] &= blank[:-1]
        fields = per_line(begins)
    else:
        fields = per_line(data == ord(separator)) + 1
        blank |= data == ord(separator)
    return fields, per_line(~blank) > 0


def _quoted_rows(path: Path, text: str, form: _Form, named: Columns) -> _Rows:
    """Lines with quotes, by the strict rules of RFC 4180: a stray quote must not swallow lines."""
    assert form.separator is not None
    records: list[list[str]] = []
    begun: list[int] = []  # the line where each record begins
    reader = csv.reader(io.StringIO(text), delimiter=form.separator, strict=True)
    start, header = 1, form.columns
    samples: list[list[str]] = []
    spanning: list[tuple[int, list[str]]] = []
    short: list[bool] = []
    chosen: dict[str, int] = {}
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            if header is None:
                header = record
                if not any(name.strip() for name in header):
                    raise InputError(f"{path}, line 1: no names of columns; expected {form.words}.")
                # The names decide what is kept of each record; the sample is judged at the end.
                chosen = _recognised(f"{path}", header, named)
            elif any(cell.strip() for cell in record):
                if len(record) > len(header):
                    raise InputError(
                        f"{path}, line {line}: too many fields; expected {form.words}."
                    )
                short.append(len(record) < len(header))
                record += [""] * (len(header) - len(record))
                records.append([record[column] for column in chosen.values()])
                begun.append(line)
                if len(samples) < _SAMPLE:
                    samples.append(record)
                if reader.line_num > line:
                    spanning.append((line, record))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: the quotes of the record that begins here do not pair "
            f"({error}): close them, or double those inside a field."
        ) from None
    if header is None or not records:
        raise InputError(f"{path} is empty: give a file with at least one interaction.")
    _refuse_swallowed(path, form.separator, header, chosen, records, spanning)
    _, order, unused = _choose(
        f"{path}", header, lambda column: [r[column] for r in samples if r[column]], named
    )
    cells = {
        kind: pd.Series([cell or None for cell in column], dtype=object)
        for kind, column in zip(chosen, zip(*records, strict=True), strict=True)
    }
    return _Rows(
        cells, np.array(begun), "line", order, unused, tuple(header), np.array(short, bool)
    )


def _refuse_swallowed(
    path: Path,
    separator: str,
    header: list[str],
    chosen: dict[str, int],
    records: list[list[str]],
    spanning: list[tuple[int, list[str]]],
) -> None:
    """InputError where a quoted field that spans lines holds what is a row by all its looks.

    So it is where somebody's title begins with a quote and another ends with one: correct by the
    rules of quotes, but rows are gone. Prose in several lines has no ids in the right places.
    """
    if not spanning:
        return
    known: dict[int, set[str]] = {
        column: {cell.strip() for cell in cells if "\n" not in cell}
        for column, cells in zip(chosen.values(), zip(*records, strict=True), strict=True)
    }
    shapes = {column: {_shape(cell) for cell in cells} for column, cells in known.items()}

    def is_row(pieces: list[str]) -> bool:
        return len(pieces) == len(header) and all(
            (piece := pieces[column].strip().strip('"')) in known[column]
            or _shape(piece) in shapes[column]
            for column in known
        )

    for line, record in spanning:
        for column, cell in enumerate(record):
            parts = cell.split("\n")
            if len(parts) == 1:
                continue
            if column in chosen.values():
                raise InputError(
                    f"{path}, line {line}: a quoted {header[column]!r} spans {len(parts)} lines: "
                    "close its quote."
                )
            candidates = [part.split(separator) for part in parts]
            candidates[0] = [*record[:column], *candidates[0]] if max(known) > column else []
            candidates[-1] = [*candidates[-1], *record[column + 1 :]] if min(known) < column else []
            if any(map(is_row, candidates)):
                raise InputError(
                    f"{path}, line {line}: a quoted {header[column]!r} spans {len(parts)} lines and "
                    "swallows rows: close its quote, or double those inside a field."
                )


def _shape(text: str) -> str:
    """ "B00x7" -> "a0a0"."""
    return re.sub(r"[0-9]+", "0", re.sub(r"[^\W\d_]+", "a", text))


# --- tables --------------------------------------------------------------------------------------


def _parquet(path: Path, data: bytes) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(data), engine="pyarrow", page_checksum_verification=True)
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install pyarrow.") from None
    except Exception as error:  # Arrow raises errors of forty kinds for damaged files
        raise InputError(
            f"{path} cannot be read as parquet ({_reason(error)}): replace it."
        ) from None


def _of_frame(where: str, frame: pd.DataFrame, named: Columns, advice: str) -> Table:
    try:
        if any(name is not None for name in frame.index.names):
            frame = frame.reset_index(allow_duplicates=True)
        if not len(frame):
            raise InputError(f"{where} is empty: give at least one interaction.")
        header = [str(name) for name in frame.columns]
        chosen, order, unused = _choose(
            where, header, lambda column: _sample(frame.iloc[:, column]), named
        )
        cells = {kind: frame.iloc[:, column] for kind, column in chosen.items()}
        places = np.arange(1, len(frame) + 1)
        return _table(where, _Rows(cells, places, "row", order, unused), False, _FRAME)
    except InputError:
        raise
    except Exception as error:  # types of columns have no end, and text may be damaged inside
        raise InputError(
            f"{where} has columns that cannot be read ({type(error).__name__}: {_reason(error)}): "
            f"{advice}."
        ) from None


def _sample(column: pd.Series) -> list[Any]:
    if isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind == "M":
        return [pd.Timestamp(0)]  # its type says it all
    return column.iloc[:_SAMPLE].dropna().tolist()


# --- which column is which -----------------------------------------------------------------------


def _words(text: str) -> set[str]:
    return set(text.split())


# After `_plain`. Those of RecTools, RecBole, RePlay, MovieLens, Amazon, H&M, Steam, Goodreads, Yelp,
# LastFM, Spotify, RetailRocket, Diginetica, Netflix and their like.
_NAMES = {
    "user": _words("""
        user users userid uid useridx userindex usr usrid username userhash customer customerid
        custid clientid client reviewerid reviewer visitorid visitor sessionid session memberid
        member accountid account profileid playerid player personid viewerid listenerid readerid
        steamid buyerid shopperid householdid subscriberid msno cookieid
    """),
    "item": _words("""
        item items itemid iid itemidx itemindex movie movieid film filmid asin parentasin article
        articleid product productid prodid book bookid isbn track trackid trackuri song songid
        artist artistid album albumid business businessid game gameid app appid video
        videoid show showid anime animeid news newsid newsarticleid contentid documentid doc docid
        post postid photoid poi poiid venue venueid locationid placeid hotel hotelid listingid offer
        offerid ad adid recipe recipeid course courseid job jobid sku skuid goods goodsid podcastid
        episodeid restaurant restaurantid beerid wineid jokeid titleid itemnumber gmapid stockcode
        clickarticleid pageid
    """),
    "time": _words("""
        timestamp timestamps ts time datetime date eventtime eventtimestamp eventdate eventdatetime
        unixreviewtime unixtime unixtimestamp unixtimestamps unixts utc utctime utctimestamp epoch
        epochtime epochseconds createdat created createdtime creationtime creationdate createdate
        createtime createddate dateadded addedat tdat reviewdate ratingtimestamp ratingtime
        ratingdate ratedat ratetime clicktime clicktimestamp clickdate clickedat viewedat viewtime
        viewdate watchedat watchdate playedat playdate listenedat listendate purchasedat
        purchasetime purchasedate orderdate ordertime orderedat transactiondate transactiontime
        transactiontimestamp timestampms timestamps timestampus timestampns timestampmillis timems
        tsms servertime logtime logdate actiontime actiondate interactiontime interactiondate
        interactiontimestamp visittime visitdate checkintime checkindate requesttime sessiondate
        readat invoicedate whencreated occurredat happenedat datetimeutc timeutc dateutc timeunix
        eventts eventat requestdate commentdate commenttime submittedat postedat
    """),
}  # fmt: skip
_WHEN = _words("""
    time times timestamp timestamps ts date dates datetime epoch unix utc when day created updated
    modified clock
""")
_NOT_WHEN = _words(
    "id ids zone timezone watch play playing spent dwell listen listening reading duration elapsed "
    "total average avg mean length response loading hours minutes seconds count number num of per "
    "used preparation prep cook cooking run running runtime full part week weekday night"
)
# Of a user or an item, and not of what a user did with an item.
_OF_ELSE = _words("birth born birthday release released publication published premiere")
_NO_NUMBER = _words("id ids code isbn ean phone zip postcode sku number price amount hash uri url")


def _plain(name: str) -> str:
    """ "user_id:token", "User-ID" -> "userid"."""
    return re.sub(r"[\W_]", "", name.split(":")[0].lower())


def _recognised(where: str, header: Sequence[str], named: Columns) -> dict[str, int]:
    """The columns that a user named, and those of the usual names: kind -> place in the header."""
    chosen: dict[str, int] = {}
    for kind, name in named._asdict().items():
        if name is None or (kind == "time" and name == NO_TIME and NO_TIME not in header):
            continue
        found = [place for place, x in enumerate(header) if x == name] or [
            place for place, x in enumerate(header) if _plain(x) == _plain(name)
        ]
        if len(found) != 1:
            raise InputError(
                f"{where} has {len(found) or 'no'} column{'s' if len(found) > 1 else ''} "
                f"'{name}' for {kind}: it has {_list(header)}."
            )
        if found[0] in chosen.values():
            raise InputError(f"{where}: the column '{name}' cannot be two things: name another.")
        chosen[kind] = found[0]
    for kind, accepted in _NAMES.items():
        if kind in chosen or (kind == "time" and named.time is not None):
            continue
        found = [
            place
            for place, name in enumerate(header)
            if _plain(name) in accepted and place not in chosen.values()
        ]
        if len(found) > 1:
            raise InputError(
                f"{where} needs one {kind} column, but its header has "
                f"{_list([header[place] for place in found])}: choose by "
                f"{kind}='…', or rename columns."
            )
        if found:
            chosen[kind] = found[0]
        elif kind != "time":
            raise InputError(
                f"{where} needs one {kind} column ({kind}, {kind}_id and the like), but its header "
                f"has {_list(header)}: name it by {kind}='…', or rename it."
            )
    return {kind: chosen[kind] for kind in _NAMES if kind in chosen}


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (", …" if len(names) > 8 else "")


def _choose(
    where: str, header: Sequence[str], sample: Callable[[int], list[Any]], named: Columns
) -> tuple[dict[str, int], str, tuple[str, ...]]:
    """Kind -> place in the header; the rule of order, in words; names of what is not used.

    InputError where a column is missing or could be meant in two ways, and where no column is taken
    as time though one looks like it, by its name or by what its cells hold.
    """
    chosen = _recognised(where, header, named)
    others = [place for place in range(len(header)) if place not in chosen.values()]
    if "time" in chosen:
        name = header[chosen["time"]]
        order = f"by the column '{name}'; equal times keep the order of the file (stable sort)"
    elif named.time is not None:
        order = "order of the file, as asked by time='none'"
    else:
        order = "order of the file: it has no timestamps"
        for place in others:
            if _looks_like_time(header[place], sample(place)):
                raise InputError(
                    f"{where}: the column {header[place][:60]!r} looks like a time, but it is none "
                    f"of the usual names: say time='{header[place][:60]}', or time='none' for the "
                    "order of the file."
                )
    return chosen, order, tuple(header[place] for place in others if header[place].strip())


_YEAR = r"(?:19|20)\d\d"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_NAMED_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATE = re.compile(
    rf"(?:{_YEAR}[-/.]{_MONTH}[-/.]{_DAY}|{_DAY}[-/.]{_MONTH}[-/.]{_YEAR}"
    rf"|{_MONTH}[-/. ]{_DAY},?[-/. ]{_YEAR}|{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))"
    r"(?:[T ,]+\d\d?:\d\d.*|T\d{4}.*)?"
    rf"|(?:[A-Z][a-z]{{2,8}},? )?(?:{_NAMED_MONTH}\.? {_DAY}|{_DAY} {_NAMED_MONTH}),? .*\d{{4}}.*"
)
_EPOCHS = [(6.3e8 * unit, 2.6e9 * unit) for unit in (1, 1e3, 1e6, 1e9)]  # 1990 to 2052


def _looks_like_time(name: str, values: list[Any]) -> bool:
    """By its name, such as "event_when_utc", or by its cells: dates, seconds since 1970 and so on."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.split(":")[0])
    parts = {part for part in re.split(r"[\W_\d]+", parts.lower()) if part}
    if parts & _OF_ELSE:
        return False
    if parts & _WHEN and not parts & _NOT_WHEN:
        return True
    if not values:
        return False
    numbered = parts & _NO_NUMBER or _plain(name).endswith("id")
    return _all_dates(values) or (not numbered and _all_epochs(values))


def _all_dates(values: list[Any]) -> bool:
    return all(
        isinstance(value, date)
        or isinstance(value, np.datetime64)
        or (isinstance(value, str) and len(value) < 60 and bool(_DATE.fullmatch(value.strip())))
        for value in values
    )


def _all_epochs(values: list[Any]) -> bool:
    numbers = []
    for value in values:
        if isinstance(value, bool) or (isinstance(value, str) and len(value) > 40):
            return False
        try:
            numbers.append(float(value))
        except (TypeError, ValueError, OverflowError):
            return False
    if any(all(low <= number <= high for number in numbers) for low, high in _EPOCHS):
        return True
    # Days as numbers, 20140502.
    whole = all(number.is_integer() and 19000101 <= number <= 20991231 for number in numbers)
    return whole and all(_DATE.fullmatch(str(int(number))) for number in numbers)


# --- cells -> numbers ----------------------------------------------------------------------------


class _BadRow(Exception):
    def __init__(self, bad: np.ndarray, what: str) -> None:
        super().__init__(what)
        self.row = int(np.argmax(bad))  # the first


def _table(where: str, rows: _Rows, integers: bool, words: str) -> Table:
    try:
        users, user_ids = _ids("user", rows.cells["user"], integers)
        items, item_ids = _ids("item", rows.cells["item"], integers)
        if rows.header:
            repeated = _is_name(rows.header, "user", user_ids)[users]
            repeated &= _is_name(rows.header, "item", item_ids)[items]
            if repeated.any():
                raise _BadRow(repeated, "the header is repeated inside the file")
        times = _times(rows.cells["time"]) if "time" in rows.cells else None
        if rows.short is not None and rows.short.any():
            raise _BadRow(rows.short, "too few fields")
    except _BadRow as bad:
        place = f"{rows.place} {rows.places[bad.row]}"
        raise InputError(f"{where}, {place}: {bad}; expected {words}.") from None
    return Table(users, items, times, user_ids, item_ids, rows.order, rows.unused)


def _is_name(header: tuple[str, ...], kind: str, ids: np.ndarray) -> np.ndarray:
    """(n,) True where an id is the name of a column, of this file or of others."""
    if ids.dtype != object:
        return np.zeros(len(ids), bool)
    names = {name.strip() for name in header}
    return np.array([x in names or _plain(x) in _NAMES[kind] for x in ids.tolist()], bool)


def _ids(kind: str, cells: pd.Series, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) -> their places (n,) among the sorted distinct ids, and these.

    An id is text, without blanks around it. Where all are integers as a program writes them, without
    sign and leading zeros and of at most 18 digits, they are int64 and sort by number: the text is
    not changed by that. In the forms that have integers, "007" is 7.
    """
    codes, values = _distinct(kind, cells)
    texts = []
    for code, value in enumerate(values):
        try:
            texts.append(_id_text(value))
        except ValueError as error:
            raise _BadRow(codes == code, f"the {kind} {error}") from None

    def refuse(bad: list[bool], why: str) -> None:
        if any(bad):
            code = bad.index(True)
            raise _BadRow(codes == code, f"the {kind} {texts[code][:40]!r} {why}")

    refuse([not text for text in texts], "is missing")
    if integers:
        refuse([not re.fullmatch("-?[0-9]+", text) for text in texts], "is not an integer")
        refuse([text[0] == "-" and bool(text.strip("-0")) for text in texts], "is negative")
        digits = [text.lstrip("-0") or "0" for text in texts]
        large = [len(text) > 10 or int(text) > _MAX_INTEGER for text in digits]
        refuse(large, f"is above {_MAX_INTEGER}")
        texts = digits
    distinct = np.empty(len(texts), object)
    distinct[:] = texts
    if all(map(re.compile("0|[1-9][0-9]{0,17}").fullmatch, texts)):
        distinct = distinct.astype(np.int64)
    distinct, place = np.unique(distinct, return_inverse=True)
    return place[codes], distinct


def _distinct(kind: str, cells: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Codes (n,) and the value of each; InputError's row where one is missing or cannot be compared."""
    try:
        codes, values = pd.factorize(cells)  # in order of appearance; -1 = missing
    except TypeError:
        held = cells.tolist()
        bad = np.array([_unhashable(value) for value in held])
        if not bad.any():
            raise
        found = type(held[int(np.argmax(bad))]).__name__
        raise _BadRow(bad, f"the {kind} is a {found}") from None
    if (codes < 0).any():
        raise _BadRow(codes < 0, f"the {kind} is missing")
    return codes, list(values)


def _unhashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def _id_text(value: Any) -> str:
    """An id of any type as text; ValueError, with the reason, for what is no id."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError("is bytes that are no text in UTF-8") from None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > LONGEST_ID:
            raise ValueError(f"has {len(text):,} characters, more than the {LONGEST_ID:,} of an id")
        if "\n" in text or "\r" in text:
            raise ValueError(f"{text[:40]!r} spans lines")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{text[:40]!r} is no text in UTF-8") from None
        return text
    if isinstance(value, bool | np.bool_):
        raise ValueError("is true or false, no id")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        if abs(value) < 2**53 and value == int(value):  # beyond, floats skip integers
            return str(int(value))
        raise ValueError(f"{str(value)[:40]} is no whole number")
    if isinstance(value, uuid.UUID):
        return str(value)
    raise ValueError(f"is a {type(value).__name__}, no id")


# --- times ---------------------------------------------------------------------------------------

_NO_TIME = "the timestamp is neither a number nor a date as in ISO 8601"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_ISO = re.compile(
    r"([0-9]{4})([-/])([0-9]{1,2})\2([0-9]{1,2})"
    r"(?:(?:T| +)([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?)?"
    r" *(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)


def _times(cells: pd.Series) -> np.ndarray:
    """Numbers of any size, or dates in ISO 8601 (n,) -> their ranks (n,), compared exactly."""
    kind = getattr(cells.dtype, "kind", "O")
    missing = cells.isna().to_numpy()
    if missing.any():
        raise _BadRow(missing, _NO_TIME)
    if isinstance(cells.dtype, pd.DatetimeTZDtype) or isinstance(cells.dtype, np.dtype):
        if kind == "M":
            return np.unique(cells.astype("int64").to_numpy(), return_inverse=True)[1]
        if kind in "iu":
            return np.unique(cells.to_numpy(), return_inverse=True)[1]
        if kind == "f":
            values = cells.to_numpy()
            if not np.isfinite(values).all():
                raise _BadRow(~np.isfinite(values), _NO_TIME)
            return np.unique(values, return_inverse=True)[1]
    codes, values = _distinct("timestamp", cells)
    texts = [_time_text(value) for value in values]
    keys: list[Any] = []
    zoned: dict[bool, int] = {}  # whether a date names its zone -> the first that does, or does not
    numbers = None
    for code, text in enumerate(texts):
        if _NUMBER.fullmatch(text):
            keys.append(int(text) if len(text) < 19 and text.isdigit() else Decimal(text))
            is_number = True
        elif found := _ISO.fullmatch(text):
            try:
                keys.append(_moment(*found.groups()))
            except ValueError:
                raise _BadRow(codes == code, f"{_NO_TIME}, but {text[:40]!r}") from None
            is_number = False
            zoned.setdefault(found[9] is not None, code)
        else:
            raise _BadRow(codes == code, _NO_TIME)
        if numbers is None:
            numbers = is_number
        elif numbers != is_number:
            raise _BadRow(codes == code, "the timestamps are numbers and dates mixed")
    if len(zoned) == 2:
        raise _BadRow(codes == max(zoned.values()), "some dates name their time zone, some do not")
    return _ranks(keys)[codes]


def _ranks(keys: list[Any]) -> np.ndarray:
    """Numbers or tuples (n,) -> their dense ranks (n,), by Python's exact comparison."""
    place = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys], np.int64)


def _time_text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return "true or false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    if isinstance(value, date):  # and datetime, and Timestamp
        return value.isoformat()
    return str(value)


def _moment(
    year: str,
    _: str,
    month: str,
    day: str,
    hour: str | None,
    minute: str | None,
    second: str | None,
    fraction: str | None,
    zone: str | None,
) -> tuple[int, str]:
    """Seconds since the year 1, in UTC, and the digits behind the point: these compare as text."""
    clock = [int(part or 0) for part in (hour, minute, second)]
    if clock[0] > 23 or clock[1] > 59 or clock[2] > 59:
        raise ValueError(clock)
    seconds = _ordinal(int(year), int(month), int(day)) * 86_400
    seconds += clock[0] * 3600 + clock[1] * 60 + clock[2]
    if zone and zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            raise ValueError(zone)
        offset = int(digits[:2]) * 3600 + int(digits[2:]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds, (fraction or "").rstrip("0")


@lru_cache(maxsize=100_000)
def _ordinal(year: int, month: int, day: int) -> int:
    return date(year, month, day).toordinal()
