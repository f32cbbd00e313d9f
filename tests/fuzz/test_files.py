"""Random files: what an exact, literal parse says, or one sentence; never a traceback."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import zipfile
from datetime import UTC, datetime
from fractions import Fraction
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsas_lab.errors import InputError
from gsas_lab.interactions import load


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("GSAS_LAB_CACHE", "/dev/null/nowhere")


def _tried(call):
    """What it gives, or none where it is told in a sentence that it does not go."""
    try:
        return call()
    except InputError as error:
        assert len(str(error)) <= 300 and str(error).isprintable() and str(error).endswith(".")
        return None


def _histories(data):
    return {
        str(data.user_ids[user]): [str(data.item_ids[item]) for item in data.history(user)]
        for user in range(data.n_users)
    }


# --- text: a literal parse -----------------------------------------------------------------------

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::", ".txt": None}


def _records(text, separator, quoted):
    """All fields of all records, letter by letter; none where quotes do not pair."""
    if not quoted:
        return [line.split(separator) for line in text.split("\n")]
    records, fields, field, state, at = [], [], "", "begin", 0
    while at < len(text):
        letter = text[at]
        at += 1
        if state == "within":
            if letter != '"':
                field += letter
            elif text[at : at + 1] == '"':
                field, at = field + '"', at + 1
            else:
                state = "closed"
        elif letter in (separator, "\n"):
            fields.append(field)
            field, state = "", "begin"
            if letter == "\n":
                records.append(fields)
                fields = []
        elif letter == '"' and state == "begin":
            state = "within"
        elif state == "closed":
            return None
        else:
            field, state = field + letter, "plain"
    return None if state == "within" else [*records, [*fields, field]]


def _moment(text):
    """A time as an exact number; ValueError for what is none."""
    if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", text):
        return Fraction(text)
    day = (
        re.match(r"(\d{4})[-/](\d\d?)()$", text, re.ASCII)
        or re.match(r"(\d{4})(\d\d)(\d\d)(?=T)", text, re.ASCII)
        or re.match(r"(\d{4})(?:-(?=\d+-)|/(?=\d+/))(\d\d?)[-/](\d\d?)", text, re.ASCII)
    )
    hour, minute, second, fraction, zone = re.fullmatch(
        r"(?:(?:T| +)(\d\d?)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?)? *(Z|z|UTC|[-+]\d\d(?::?\d\d)?)?",
        text[day.end() :], re.ASCII,
    ).groups()  # fmt: skip
    parts = [int(part or 0) for part in (hour, minute, second)]
    moment = datetime(int(day[1]), int(day[2]), int(day[3] or 1), *parts, tzinfo=UTC)
    seconds = (moment - datetime(1, 1, 1, tzinfo=UTC)).total_seconds()
    zone = zone or ""
    if zone[:1] in ("+", "-"):
        digits = zone[1:].replace(":", "").ljust(4, "0")
        shift = int(digits[:2]) * 3600 + int(digits[2:]) * 60
        seconds -= shift if zone[0] == "+" else -shift
    return Fraction(int(seconds)) + Fraction(f"0.{fraction or 0}")


def _literal(text, suffix, header):
    """{user: [items]} by the rules of data/README.md; none where the file is not as they say."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if suffix == ".jsonl":
        objects = [
            json.loads(x, parse_int=str, parse_float=str) for x in text.split("\n") if x.strip()
        ]
        if {name for found in objects for name in found} != set(header):
            return ANY  # a damaged key: another test says which names are known
        records = [[found.get(name) for name in header] for found in objects]
    else:
        records = _records(text, SEPARATORS[suffix], suffix in (".csv", ".tsv"))
        if records is None:
            return None
        records = [fields for fields in records if any(x.strip() for x in fields)]
        if suffix in (".csv", ".tsv", ".inter"):
            header, *records = records
    kinds = {"user": 0, "item": 1, "time": 2}
    plain = [name.split(":")[0] for name in header]
    places = {kinds[name]: at for at, name in enumerate(plain) if name in kinds}
    rows = []
    for fields in records:
        if len(fields) != len(header):
            return None
        user, item = (fields[places[kind]].strip() for kind in (0, 1))
        if suffix in (".data", ".dat", ".txt"):
            user, item = str(int(user)), str(int(item))
        when = _moment(fields[places[2]].strip()) if 2 in places else 0
        rows.append((user, item, when))
    found = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        found.setdefault(user, []).append(item)
    return found


# --- text: what is tried -------------------------------------------------------------------------

WORDS = ["a", "b", "A", "é", "007", "7", "-3", "0", "10", "9", "108775015", "0108775015", "x y",
         "76561198000000001", "76561198000000002", "NA", "null", "1.0", "1e3", "a'b", "ß-1"]  # fmt: skip
TITLES = ["Heat", "", "12 Monkeys", "Good, or not", 'The "Big" one', "Two\nlines", '"', "x" * 200]
MOMENTS = [
    lambda rng: str(rng.randrange(5)),
    lambda rng: str(1_700_000_000_000_000_000 + rng.randrange(4)),
    lambda rng: f"{1_700_000_000_000_000_000 + rng.randrange(3)}.{rng.randrange(10)}",
    lambda rng: f"{rng.uniform(-3, 3):.20f}",
    lambda rng: f"{rng.randrange(1, 9)}e{rng.randrange(-3, 20)}",
    lambda rng: f"2020-0{rng.randrange(1, 3)}-1{rng.randrange(2)}",
    lambda rng: (
        f"2020-01-01T0{rng.randrange(2)}:00:00.{rng.randrange(3):012d}"
        f"{rng.choice(['Z', '+01:00', '-0030'])}"
    ),
]
BITS = [
    '"',
    ",",
    "\t",
    "\n",
    "\r",
    " ",
    "::",
    "0",
    "-",
    ".",
    "e",
    "1",
    "\ufeff",
    "a",
    "Z",
    "{",
    "}",
    "é",
]


def _quoted(rng, field, separator):
    must = separator in field or "\n" in field or field.startswith('"')
    return '"' + field.replace('"', '""') + '"' if must or rng.random() < 0.1 else field


def _text(rng):
    """A random file that is as its form says: suffix, header, text."""
    suffix = rng.choice([*SEPARATORS, ".jsonl"])
    separator = SEPARATORS.get(suffix)
    words = (
        [w for w in WORDS if not separator or separator not in w]
        if rng.random() < 0.6
        else ["1", "2", "30"]
    )
    moment = rng.choice(MOMENTS)
    header = rng.sample(["user", "item", "time", "title"], 4)[: rng.choice([4, 4, 4, 3])]
    header += [name for name in ("user", "item") if name not in header]
    if suffix in (".data", ".dat", ".txt"):
        words = ["1", "2", "30", "007", "2147483647"]
        moment = rng.choice(MOMENTS[:5])
        header = ["user", "item", "rating", "time"] if suffix != ".txt" else ["user", "item"]
    make = {
        "user": lambda: rng.choice(words),
        "item": lambda: rng.choice(words),
        "time": lambda: moment(rng),
        "title": lambda: rng.choice(TITLES),
        "rating": lambda: str(rng.randrange(6)),
    }
    rows = [[make[name]() for name in header] for _ in range(rng.randrange(1, 12))]
    if suffix == ".jsonl":
        named = [dict(zip(header, row, strict=True)) for row in rows]
        return (
            suffix,
            header,
            "".join(json.dumps(x, ensure_ascii=rng.random() < 0.5) + "\n" for x in named),
        )
    if suffix in (".csv", ".tsv"):
        rows = [[_quoted(rng, field, separator) for field in row] for row in rows]
    else:
        rows = [
            [re.sub(r"\s", "", x) if suffix == ".txt" else re.sub(r"[\t\n]", "_", x) for x in r]
            for r in rows
        ]
    end = rng.choice(["\n", "\n", "\r\n"])
    lines = [(separator or rng.choice([" ", "\t", "  "])).join(row) for row in rows]
    if suffix in (".csv", ".tsv", ".inter"):
        forms = {
            "user": "user:token",
            "item": "item:token",
            "time": "time:float",
            "title": "title:token",
        }
        lines.insert(0, separator.join(forms[n] if suffix == ".inter" else n for n in header))
    return suffix, header, rng.choice(["", "", "\ufeff"]) + end.join(lines) + rng.choice([end, ""])


def _damaged(rng, suffix, text):
    """Some letters below the header put in, taken out, doubled or cut off."""
    start = text.find("\n") + 1 if suffix in (".csv", ".tsv", ".inter") else 0
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(start, len(text) + 1)
        end = min(len(text), at + rng.choice([1, 1, 3, 30]))
        kind = rng.randrange(5)
        put = {0: rng.choice(BITS), 1: "", 2: text[at:end] * 2, 3: rng.choice(BITS)}.get(kind)
        text = text[:at] if put is None else text[:at] + put + text[at if kind == 0 else end :]
    return text


def test_a_text_gives_what_a_literal_parse_gives_or_a_sentence(tmp_path, fuzz):
    told = {"right": 0, "damaged and right": 0, "told": 0}
    for number in range(fuzz):
        rng = random.Random(number)
        suffix, header, text = _text(rng)
        whole = number % 3 == 0
        text = text if whole else _damaged(rng, suffix, text)
        path = tmp_path / f"a{suffix}"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            data = _tried(lambda path=path: load(path))
            if data is None:
                assert not whole
                told["told"] += 1
                continue
            assert _histories(data) == _literal(text, suffix, header)
            told["right" if whole else "damaged and right"] += 1
        except BaseException as error:
            error.add_note(f"case {number}: {suffix}, {text!r}")
            raise
    assert min(told.values()) > 0 or fuzz < 40
    print(told)


# --- columns -------------------------------------------------------------------------------------

USERS = ["user", "user_id", "userId", "User-ID", "reviewerID", "customer_id", "uid", "userid:token"]
ITEMS = ["item", "item_id", "itemId", "MovieID", "asin", "article_id", "product_id", "item id"]
TIMES = [
    "timestamp",
    "Time",
    "datetime",
    "event_time",
    "unixReviewTime",
    "created_at",
    "t_dat",
    "date",
]
STRANGE = [
    "last_seen",
    "watch",
    "moment",
    "x",
    "when_played",
    "started",
    "dt2",
    "Zeit",
    "order",
    "c4",
]
WRITTEN = [
    lambda seconds: str(seconds),
    lambda seconds: str(seconds * 1000),
    lambda seconds: f"{seconds * 10**9}",
    lambda seconds: f"{seconds}.25",
    lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat(),
    lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}",
    lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y%m%d}",
    lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%m/%d/%Y %H:%M}",
    lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y}",
]


def test_a_column_of_times_orders_or_is_told_whatever_its_name(tmp_path, fuzz):
    told = {"ordered": 0, "told": 0}
    for number in range(fuzz):
        rng = random.Random(number)
        names = [rng.choice(USERS), rng.choice(ITEMS), rng.choice(TIMES + STRANGE), "stars"]
        write = rng.choice(WRITTEN)
        seconds = [rng.randrange(10**9, 2 * 10**9) for _ in range(rng.randrange(2, 9))]
        rows = [["a", f"i{at}", write(when), "5"] for at, when in enumerate(seconds)]
        columns = rng.sample(range(4), 4)
        lines = [",".join(row[column] for column in columns) for row in [names, *rows]]
        path = tmp_path / "a.csv"
        path.write_text("\n".join(lines))
        try:
            data = _tried(lambda path=path: load(path))
            if data is None:
                assert names[2] in STRANGE or "/" in rows[0][2] or " " in rows[0][2]
                told["told"] += 1
                continue
            key = [row[2] for row in rows] if write is WRITTEN[5] else seconds
            key = [int(row[2]) for row in rows] if write is WRITTEN[6] else key
            order = sorted(range(len(rows)), key=lambda at: key[at])
            assert _histories(data) == {"a": [f"i{at}" for at in order]}
            assert f"by the column '{names[2]}'" in data.tie_rule and data.unused == ("stars",)
            told["ordered"] += 1
        except BaseException as error:
            error.add_note(f"case {number}: {lines[:2]}")
            raise
    assert min(told.values()) > 0 or fuzz < 40
    print(told)


# --- packed files --------------------------------------------------------------------------------


def _zipped(data):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", data)
    return packed.getvalue()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": _zipped}


def _hit(rng, data):
    """Bytes changed: bits flipped, cut short, noise put in, a piece doubled."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind < 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        else:
            data[at:at] = data[at : at + rng.randrange(40)]
    return bytes(data)


def test_a_damaged_archive_gives_what_was_packed_or_a_sentence(tmp_path, fuzz):
    rows = random.Random(0).choices(range(50), k=600)
    text = "user,item\n" + "".join(f"{a},{b}\n" for a, b in zip(rows[::2], rows[1::2], strict=True))
    (tmp_path / "a.csv").write_text(text)
    right = _histories(load(tmp_path / "a.csv"))
    packed = {suffix: pack(text.encode()) for suffix, pack in PACKED.items()}
    told = {"right": 0, "told": 0}
    for number in range(fuzz):
        rng = random.Random(number)
        suffix = rng.choice(list(PACKED))
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(_hit(rng, packed[suffix]))
        try:
            data = _tried(lambda path=path: load(path))
            assert data is None or _histories(data) == right
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
        told["told" if data is None else "right"] += 1
    assert min(told.values()) > 0 or fuzz < 40
    print(told)


# --- parquet -------------------------------------------------------------------------------------


def _column(rng, kind):
    """A column of some type that parquet has, six rows."""
    makers = [
        lambda: pa.array(rng.choices(range(4), k=6)),
        lambda: pa.array(rng.choices(["a", "b", "é"], k=6)),
        lambda: pa.array(rng.choices([b"a", b"\xff", b"b"], k=6)),
        lambda: pa.array(rng.choices([1.0, 2.0, 2.5], k=6)),
        lambda: pa.array(rng.choices([1, None], k=6), pa.int32()),
        lambda: pa.array(rng.choices([[1], [2, 3]], k=6)),
        lambda: pa.array(rng.choices([{"x": 1}, {"x": 2}], k=6)),
        lambda: pa.array(rng.choices([True, False], k=6)),
        lambda: pa.array(
            rng.choices(range(9), k=6), pa.timestamp(rng.choice(["s", "ms", "us", "ns"]))
        ),
        lambda: pa.array(rng.choices(range(9), k=6), pa.date32()),
        lambda: pa.array(rng.choices(range(9), k=6), pa.time64("us")),
        lambda: pa.array(rng.choices(range(9), k=6), pa.duration("s")),
        lambda: pa.array(rng.choices([1, 2], k=6)).cast(pa.decimal128(30, 2)),
        lambda: pa.array(rng.choices(["a", "b"], k=6)).dictionary_encode(),
        lambda: pa.array(rng.choices(["a", "b"], k=6), pa.large_string()),
        lambda: pa.array([None] * 6),
        lambda: pa.array([2**64 - 1, 0, 1, 2, 3, 4], pa.uint64()),
        lambda: pa.array([[(b"a", 1)]] * 6, pa.map_(pa.binary(), pa.int64())),
    ]
    usual = {"user": makers[:2], "item": makers[:2], "time": [makers[0], makers[8]]}
    return rng.choice(usual[kind] if rng.random() < 0.7 else makers)()


def _parquet(rng):
    names = [*rng.sample(["user", "item", "time"], rng.choice([2, 3, 3, 3])), "text"]
    table = pa.table({name: _column(rng, name if name != "text" else "user") for name in names})
    file = io.BytesIO()
    pq.write_table(
        table, file, compression=rng.choice(["none", "snappy", "gzip", "zstd"]),
        write_page_checksum=rng.random() < 0.5, use_dictionary=rng.random() < 0.5,
    )  # fmt: skip
    return table, file.getvalue()


def test_parquet_of_any_type_whole_or_damaged_gives_interactions_or_a_sentence(tmp_path, fuzz):
    told = {"right": 0, "loaded": 0, "told": 0}
    path = tmp_path / "a.parquet"
    for number in range(fuzz):
        rng = random.Random(number)
        table, content = _parquet(rng)
        whole = number % 3 == 0
        path.write_bytes(content if whole else _hit(rng, content))
        try:
            data = _tried(lambda: load(path))
            if data is None:
                told["told"] += 1
                continue
            told["right" if whole else "loaded"] += 1
            assert data.n_interactions == data.offsets[-1] > 0 and data.items.min() == 1
            if whole:
                _same_as_table(data, table)
        except BaseException as error:
            error.add_note(f"case {number}: {table.schema}")
            raise
    assert min(told.values()) > 0 or fuzz < 40
    print(told)


def _same_as_table(data, table):
    """Whatever the types, row by row in Python."""
    columns = {name: table[name].to_pylist() for name in table.column_names}
    when = columns.get("time", [0] * len(table))
    if "time" in columns and pa.types.is_timestamp(table["time"].type):
        when = table["time"].cast(pa.int64()).to_pylist()
    found = {}
    for at in sorted(range(len(table)), key=lambda row: when[row]):
        user, item = (columns[kind][at] for kind in ("user", "item"))
        found.setdefault(_as_text(user), []).append(_as_text(item))
    assert _histories(data) == found


def _as_text(value):
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else str(int(value))
