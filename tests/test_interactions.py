"""Files become the same interactions in every form, and each mistake gets one clear sentence."""

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pyarrow
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_matrix

from gsas_lab import interactions, reading, splits
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.interactions import describe, from_world, load
from gsas_lab.worlds import World

ROOT = Path(__file__).resolve().parent.parent
FILES = Path(os.environ.get("GSAS_LAB_DATA") or ROOT.parent / "shared" / "data")
needs_files = pytest.mark.skipif(
    not (FILES / "ml-1m.txt").exists(), reason="no data files in $GSAS_LAB_DATA or ../shared/data"
)
# One temporary folder serves all examples: each writes its own files first.
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
rows_of = st.lists(  # user, item, timestamp: few values, so that users repeat and times tie
    st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=40
)


def no_network(self, url, output_file, pooch, check_only=False):
    raise requests.ConnectionError("no route")


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("GSAS_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GSAS_LAB_DATA", raising=False)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_network)


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setenv("GSAS_LAB_DATA", str(FILES))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own with one registered data set, "tiny", that has titles."""
    contents = {
        "tiny.txt": b"1 1\n1 2\n2 2\n",
        "movies.dat": "7::Café (1999)::Drama|War\n9::\x85 (2000)::Comedy\n".encode("latin-1"),
        "ids.txt": b"1 9\n2 7\n",
    }
    files = {
        name: {"url": f"https://example.org/{name}", "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }
    files["movies.dat"] |= {"url": "https://example.org/films.zip", "member": "films/movies.dat"}
    tiny = {
        "file": "tiny.txt", "files": files, "titles": ["movies.dat", "ids.txt"], "min_user": 1,
        "users": 2, "items": 2, "interactions": 3, "tie_rule": "unknown",
    }  # fmt: skip
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "registry.json").write_text(json.dumps({"tiny": tiny}))
    monkeypatch.setattr(interactions, "_DATA", folder)
    return folder, contents


def serve(monkeypatch, contents):
    """Let the network answer with these files, movies.dat in its archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as films:
        films.writestr("films/movies.dat", contents.get("movies.dat", b""))
    served = {**contents, "films.zip": archive.getvalue()}

    def download(self, url, output_file, pooch, check_only=False):
        output_file.write(served[url.rpartition("/")[2]])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def histories(data):
    """{user id: [item ids]}: what a data set says, whatever its numbering."""
    return {
        str(data.user_ids[user]): [str(data.item_ids[item]) for item in data.history(user)]
        for user in range(data.n_users)
    }


def literal_histories(rows):
    """The same, by Python's own stable sort."""
    expected: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        expected.setdefault(str(user), []).append(str(item))
    return expected


# --- the named data sets -------------------------------------------------------------------------


@needs_files
def test_ml_1m_is_the_papers_with_titles_and_genres(shared):
    data = load("ml-1m")
    assert (data.n_users, data.n_items, data.n_interactions) == (6040, 3416, 999_611)
    assert np.array_equal(data.item_ids, np.arange(3417))  # item i stays i
    assert np.array_equal(data.user_ids, np.arange(1, 6041))
    users, items = np.loadtxt(FILES / "ml-1m.txt", dtype=int).T
    assert np.array_equal(data.history(962), items[users == 963])
    assert np.array_equal(data.items, items)  # that file has its users in order
    assert data.title(1) == "Raiders of the Lost Ark (1981)"
    assert data.genres[1] == "Action|Adventure"
    assert any("é" in title for title in data.titles)  # movies.dat is Latin-1
    assert len(data.titles) == len(data.genres) == 3417 and all(data.titles)
    assert data.exclude_seen and data.world is None
    assert data.sha256 == hashlib.sha256((FILES / "ml-1m.txt").read_bytes()).hexdigest()


@needs_files
def test_ml_1m_keeps_a_third_of_its_interactions_beyond_the_last_200(shared):
    row = describe(load("ml-1m")).loc["ml-1m"]
    assert row["longest"] == 2277
    assert 0.33 < row["beyond the last 200"] < 0.35


@needs_files
def test_the_second_load_of_ml_1m_takes_well_under_a_second(shared):
    load("ml-1m")
    start = time.perf_counter()
    load("ml-1m")
    assert time.perf_counter() - start < 0.5


@needs_files
@pytest.mark.parametrize(
    "name, sizes, shortest",
    [
        ("beauty", (40_226, 54_542, 353_962), 5),
        ("video-games", (30_901, 23_698, 286_913), 3),
        ("ciao", (7_375, 105_114, 284_086), 4),
        ("epinions", (22_164, 296_277, 922_267), 1),
    ],
)
def test_the_other_data_sets_have_the_registered_sizes(shared, name, sizes, shortest):
    data = load(name)
    assert (data.n_users, data.n_items, data.n_interactions) == sizes
    assert data.lengths.min() == shortest
    assert data.title(1) == "1"  # without titles, the id


def matlab(matrix, **more) -> bytes:
    file = io.BytesIO()
    savemat(file, {"rating": matrix, **more}, do_compression=True)
    return file.getvalue()


def test_a_matlab_matrix_is_ordered_by_its_time_and_then_by_its_rows(tmp_path):
    rows = [[7, 5, 1, 3, 2, 30], [7, 9, 1, 3, 2, 10], [4, 5, 1, 5, 2, 1], [7, 2, 2, 1, 0, 10]]
    (tmp_path / "a.mat").write_bytes(matlab(np.array(rows, np.int32)))
    data = load(tmp_path / "a.mat")
    assert histories(data) == {"4": ["5"], "7": ["9", "2", "5"]}
    assert data.unused == ("category", "rating", "helpfulness")


def test_a_matlab_file_that_is_cut_damaged_or_holds_something_else_is_a_sentence(tmp_path, fuzz):
    whole = matlab(np.arange(1, 601, dtype=np.int32).reshape(100, 6))
    draw, path = np.random.default_rng(5), tmp_path / "a.mat"
    others = [b"", b"user,item", matlab(np.ones((3, 2))), matlab(np.ones((2, 6)), other=[1])]
    others += [matlab(csc_matrix(np.ones((2, 6))))]
    others += [matlab({"a": 1}), matlab(np.array([["a"] * 6], object))]
    for case in range(len(others) + min(fuzz, 200)):
        data = others[case] if case < len(others) else bytearray(whole)
        if case >= len(others):
            data = data[: draw.integers(1, len(data))]
            data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        path.write_bytes(data)
        with pytest.raises(InputError):
            load(path)


CHECK_INS = "loc-gowalla_totalCheckins.txt.gz"


def check_ins(rows) -> bytes:
    """Lines as in SNAP's Gowalla: user, time, latitude, longitude, place."""
    lines = (
        f"{user}\t2010-10-{1 + second // 24:02}T{second % 24:02}:55:27Z\t30.23\t-97.79\t{item}\n"
        for user, item, second in rows
    )
    return "".join(lines).encode()


@settings(parent=quick, max_examples=60)
@given(rows=rows_of, piece=st.integers(60, 300))
def test_check_ins_in_any_order_and_repeated_are_ordered_by_time(tmp_path, rows, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_PIECE", piece)  # lines are cut anywhere
        patch.setattr(
            interactions, "_parsed", lambda path, data, *more: _uncached(path, data, *more)
        )
        for name, pack in ((CHECK_INS, gzip.compress), (CHECK_INS[:-3], bytes)):
            data = load(written(tmp_path, name, pack(check_ins(rows))))
            assert histories(data) == literal_histories(rows)
            assert data.unused == ("latitude", "longitude") and "'timestamp'" in data.tie_rule


def _uncached(path, data, *more):
    return interactions._parse(path, data, *more) | {"sha256": ""}


def test_check_ins_that_are_cut_or_damaged_are_a_sentence_with_the_line(tmp_path):
    good = check_ins((user, 7, user) for user in range(50)).split(b"\n")[:-1]
    cases = {
        b"3\t2010-10-19T23:55:27Z\t1\t2": "line 21: too few fields",
        b"3\t2010-10-19T23:55:27Z\t1\t2\t3\t4": "line 21: too many fields",
        b"3\t2010-10-19T23:55:27Z\t1\t2\t-4": "line 21: the item '-4' is negative",
        b"x\t2010-10-19T23:55:27Z\t1\t2\t4": "line 21: the user 'x' is not an integer",
        b"3\t2010-13-19T23:55:27Z\t1\t2\t4": "line 21: the timestamp Month out of range",
        b"3\t2010-10-19 23:55\t1\t2\t4": "line 21: the timestamp '2010-10-19 23:55' is none",
        b"3\t2010-10-19T23:55:27Z\t1\t2\t2147483648": "line 21: the item .* is above 2147483647",
        b"3\t2010-10-19T23:55:27Z\t1\t2\t99999999999999999999": "line 21: the item .* is above",
        b"\0\xff": "line 21: too few fields",
        b"9" * (1 << 23): "line 21: too long|line 21: too few fields",
    }
    for line, message in cases.items():
        whole = b"\r\n".join([*good[:19], b"", line, *good[19:]])
        with pytest.raises(InputError, match=message) as told:
            load(written(tmp_path, CHECK_INS, gzip.compress(whole)))
        assert str(told.value).endswith(".")
    whole = b"\n".join([b"", *good, b" "])
    assert load(written(tmp_path, CHECK_INS, gzip.compress(whole))).n_interactions == 50
    packed = gzip.compress(whole)
    for cut in (3, len(packed) // 2, len(packed) - 1):
        with pytest.raises(InputError, match="cannot be unpacked"):
            load(written(tmp_path, CHECK_INS, packed[:cut]))
    with pytest.raises(InputError, match="is empty"):
        load(written(tmp_path, CHECK_INS, gzip.compress(b"\n\n")))
    with pytest.raises(InputError, match="name none of them"):
        load(written(tmp_path, CHECK_INS, gzip.compress(whole)), user="latitude")
    in_file_order = load(tmp_path / CHECK_INS, time="none")
    assert in_file_order.tie_rule.startswith("order of the file")


def registered(folder, name, content, **changes):
    """Register a file of the form of a named data set's, as that one but for its checksum and counts."""
    entry = json.loads((ROOT / "data" / "registry.json").read_text())[name]
    entry["files"][entry["file"]] |= changes.pop("checksum")
    (folder / "registry.json").write_text(json.dumps({name: entry | changes}))
    written(folder, entry["file"], content)


def test_gowalla_keeps_users_with_five_check_ins_and_seen_items(project):
    folder, _ = project
    rows = [(user, item % 3, 30 - item) for user in range(4) for item in range(3 + user)]
    packed = gzip.compress(check_ins(rows))
    checksum = {"md5": hashlib.md5(packed).hexdigest()}
    registered(folder, "gowalla", packed, checksum=checksum, users=2, items=3, interactions=11)
    data = load("gowalla")
    assert histories(data) == literal_histories(row for row in rows if row[0] >= 2)
    assert not data.exclude_seen and not splits.leave_one_out(data, 1).protocol.exclude_seen
    registered(folder, "gowalla", packed, checksum=checksum, users=2, items=3, interactions=12)
    with pytest.raises(InputError, match=r"a difference of \+0, \+0, -1; get the file again"):
        load("gowalla")
    written(folder, CHECK_INS, packed[:-1])
    with pytest.raises(InputError, match="the checksum .MD5. is .*delete it to download it again"):
        load("gowalla")


def test_steam_is_verified_by_the_name_that_git_gives_its_content(project):
    folder, _ = project
    content = b"1 5\n1 6\n2 5\n"
    blob = {"git_blob": "8e0f4a5e8bd9d0a7f5b7f9b4d4f0b4e0c1c0d0aa"}
    registered(folder, "steam", content, checksum=blob, users=2, items=2, interactions=3)
    with pytest.raises(InputError, match="the checksum .git blob. is "):
        load("steam")
    blob["git_blob"] = git_blob(folder / "steam.txt")
    registered(folder, "steam", content, checksum=blob, users=2, items=2, interactions=3)
    data = load("steam")
    assert histories(data) == {"1": ["5", "6"], "2": ["5"]} and data.exclude_seen


def git_blob(path) -> str:
    done = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_papers_counts_are_registered():
    registry = json.loads((ROOT / "data" / "registry.json").read_text())
    for name, (users, items, interactions_) in {
        "ml-1m": (6_040, 3_416, 999_611),
        "steam": (281_428, 13_044, 3_488_885),
        "gowalla": (86_168, 1_271_638, 6_397_903),
    }.items():
        counts = {"users": users, "items": items, "interactions": interactions_}
        assert counts.items() <= registry[name].items()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, read = written(tmp_path, "a.csv", "user,item\n1,2\n"), Path.read_bytes

    def meanwhile(self):
        data = read(self)
        with path.open("a") as file:
            file.write("3,4\n")
        return data

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    with pytest.raises(
        InputError, match="a.csv changed while it was read: wait until it is written"
    ):
        load(path)


@pytest.mark.parametrize("beyond", [2**31, 2**40, 2**53 + 2, 1e300, -1, 0.5, np.inf, np.nan])
def test_ids_in_a_matlab_file_beyond_int32_are_right_or_a_sentence(tmp_path, beyond):
    rows = np.array([[7, 5, 1, 3, 2, 30], [beyond, 9, 1, 3, 2, 10]])
    (tmp_path / "a.mat").write_bytes(matlab(rows))
    try:
        assert histories(load(tmp_path / "a.mat")) == {"7": ["5"], str(int(beyond)): ["9"]}
    except InputError as error:
        assert "row 2: the user" in str(error)
        assert not 0 <= beyond < 2**53 or beyond % 1


def test_a_stricter_minimum_than_the_registered_one_holds(project):
    folder, contents = project
    for name, content in contents.items():
        written(folder, name, content)
    assert histories(load("tiny", min_user=2)) == {"1": ["1", "2"]}


# --- the known-truth world -----------------------------------------------------------------------


def test_known_truth_carries_its_world_and_keeps_seen_items():
    data = load("known-truth")
    assert (data.n_users, data.n_items) == (data.world.n_users, data.world.n_items)
    assert np.array_equal(data.items.reshape(data.n_users, -1), data.world.sample())
    assert not data.exclude_seen and data.title(1) == data.world.item_names[1]
    with pytest.raises(InputError, match="takes no min_user or min_item"):
        load("known-truth", min_user=5)


def test_another_world_has_another_hash():
    worlds = [World(n_users=5, length=4, n_items=20, seed=seed) for seed in (0, 1, 0)]
    first, second, again = (from_world(world).sha256 for world in worlds)
    assert first == again != second


# --- the forms -----------------------------------------------------------------------------------

FORMS = {
    "a.csv": lambda t: t.to_csv(index=False).encode(),
    "b.csv": lambda t: t.rename(
        columns={"user": "userId", "item": "movieId", "timestamp": "Timestamp"}
    ).assign(rating=5)[["rating", "movieId", "Timestamp", "userId"]].to_csv(index=False).encode(),
    "c.tsv": lambda t: t.rename(columns={"timestamp": "ts"}).to_csv(sep="\t", index=False).encode(),
    "d.parquet": lambda t: t.rename(columns={"timestamp": "time"}).to_parquet(),
    "e.parquet": lambda t: t.assign(timestamp=pd.to_datetime(t.timestamp, unit="s")).to_parquet(),
    "f.csv": lambda t: t.assign(
        timestamp=pd.to_datetime(t.timestamp, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    ).to_csv(index=False).encode(),
    "g.inter": lambda t: t.set_axis(
        ["user_id:token", "item_id:token", "timestamp:float"], axis=1
    ).to_csv(sep="\t", index=False).encode(),
    "ratings.dat": lambda t: "".join(f"{u}::{i}::5::{w}\n" for u, i, w in t.values).encode(),
    "u.data": lambda t: "".join(f"{u}\t{i}\t5\t{w}\n" for u, i, w in t.values).encode(),
    "h.txt": lambda t: "".join(
        f"{u} {i}\n" for u, i, _ in t.sort_values("timestamp", kind="stable").values
    ).encode(),
}  # fmt: skip


@quick
@given(rows=rows_of)
def test_every_form_gives_the_same_interactions(tmp_path, rows):
    table = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    for name, write in FORMS.items():
        data = load(written(tmp_path, name, write(table)))
        assert histories(data) == literal_histories(rows), name  # so equal times keep file order
        assert data.items.dtype == np.int32 and data.offsets.dtype == np.int64
        assert data.user_ids.dtype == data.item_ids.dtype == np.int64, name
        assert list(data.item_ids[1:]) == sorted({item for _, item, _ in rows})
        assert data.name == name


@pytest.mark.parametrize("name", ["a.csv", "h.txt"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,  # as Windows programs write UTF-8
        lambda content: content.rstrip(b"\n"),
        lambda content: content + b"\n\n",
        lambda content: content.replace(b"\n", b"\n\n"),
    ],
)
def test_line_ends_byte_order_mark_and_blank_lines_change_nothing(tmp_path, name, change):
    rows = [(3, 1, 0), (3, 2, 1), (1, 2, 0)]
    content = FORMS[name](pd.DataFrame(rows, columns=["user", "item", "timestamp"]))
    assert histories(load(written(tmp_path, name, change(content)))) == literal_histories(rows)


def test_the_tie_rule_says_what_was_done(tmp_path):
    timed = load(written(tmp_path, "a.csv", "user,item,timestamp\n1,5,9\n1,4,9\n1,3,2\n"))
    assert "timestamp" in timed.tie_rule and "stable" in timed.tie_rule
    assert histories(timed) == {"1": ["3", "5", "4"]}
    untimed = load(written(tmp_path, "b.csv", "user,item\n1,5\n2,1\n1,4\n"))
    assert "order of the file" in untimed.tie_rule
    assert histories(untimed) == {"1": ["5", "4"], "2": ["1"]}


def test_times_of_nanoseconds_are_told_apart(tmp_path):
    late, early = 1_700_000_000_000_000_001, 1_700_000_000_000_000_000  # equal as float64
    path = written(tmp_path, "a.csv", f"user,item,ts\n1,5,{late}\n1,4,{early}\n")
    assert histories(load(path)) == {"1": ["4", "5"]}


def test_integer_ids_sort_by_number_and_others_as_text(tmp_path):
    numbers = load(written(tmp_path, "a.csv", "user,item\n1,10\n1,9\n"))
    assert list(numbers.item_ids) == [0, 9, 10]
    words = load(written(tmp_path, "b.csv", 'user,item\nNA,"B0, x"\nNA,A7\nnull,A7\n'))
    assert histories(words) == {"NA": ["B0, x", "A7"], "null": ["A7"]}
    assert list(words.items) == [2, 1, 1]
    assert load(written(tmp_path, "c.csv", "user,item\n1,7\n1,007\n")).n_items == 2
    assert load(written(tmp_path, "d.txt", "1 7\n1 007\n")).n_items == 1  # numbers by definition


@quick
@given(rows=rows_of, min_user=st.integers(1, 4), min_item=st.integers(1, 4))
def test_minimum_counts_leave_the_core(tmp_path, rows, min_user, min_item):
    kept, before = [(str(user), str(item)) for user, item, _ in rows], -1
    while len(kept) != before:
        before = len(kept)
        per_item = Counter(item for _, item in kept)
        kept = [row for row in kept if per_item[row[1]] >= min_item]
        per_user = Counter(user for user, _ in kept)
        kept = [row for row in kept if per_user[row[0]] >= min_user]
    path = written(tmp_path, "a.txt", "".join(f"{user} {item}\n" for user, item, _ in rows))
    if not kept:
        with pytest.raises(InputError, match="keep nothing"):
            load(path, min_user=min_user, min_item=min_item)
        return
    data = load(path, min_user=min_user, min_item=min_item)
    expected = {user: [i for u, i in kept if u == user] for user, _ in kept}
    assert histories(data) == expected
    assert sorted(set(data.items)) == list(range(1, data.n_items + 1))


def test_minimum_counts_are_applied_again_until_nothing_changes(tmp_path):
    # Item 9 goes first, then user 3, who kept item 8 alive, then item 8, then user 2.
    path = written(tmp_path, "a.txt", "1 1\n1 2\n2 1\n2 8\n3 8\n3 9\n4 1\n4 2\n")
    data = load(path, min_user=2, min_item=2)
    assert histories(data) == {"1": ["1", "2"], "4": ["1", "2"]}


def test_a_user_with_one_interaction_loads(tmp_path):
    assert list(load(written(tmp_path, "a.txt", "1 1\n2 1\n2 2\n")).lengths) == [1, 2]


# --- bad input -----------------------------------------------------------------------------------

TIMED = "user,item,timestamp\n1,2,3\n"
BAD = {
    "empty": ("a.txt", "", "is empty"),
    "blank": ("a.txt", " \n\n", "is empty"),
    "empty csv": ("a.csv", "", "is empty"),
    "header only": ("a.csv", "user,item\n", "is empty"),
    "binary": ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "binary or UTF-16"),
    "UTF-16": ("a.csv", TIMED.encode("utf-16"), "binary or UTF-16"),
    "Latin-1": ("a.csv", "user,item\n1,2\n1,Café\n".encode("latin-1"), "line 3: not text in UTF-8"),
    "words": ("a.txt", "1 2\n3 x\n", r"line 2: the item 'x' is not an integer; expected two int"),
    "decimals": ("a.txt", "1 2\n3 4.0\n", "line 2: the item '4.0' is not an integer"),
    "one field": ("a.txt", "1 2\n\n3\n", "line 3: the item is missing; expected two integers"),
    "cut": ("a.txt", "1 2\n2 4\n3", "line 3: the item is missing"),
    "three fields": ("a.txt", "1 2\n3 4 5\n6 7\n", "line 2: too many fields; expected two int"),
    "three in the first": ("a.txt", "1 2 3\n4 5\n", "line 1: too many fields"),
    "fields that add up": ("a.txt", "1 2 3\n4\n", "line 1: too many fields"),
    "commas": (
        "a.txt",
        "1,2\n3,4\n",
        "line 1: the user '1,2' is not an integer; expected two integers",
    ),
    "negative": ("a.txt", "1 2\n3 -4\n", "line 2: the item '-4' is negative"),
    "huge": ("a.txt", "1 2\n2147483648 4\n", "line 2: the user '2147483648' is above 2147483647"),
    "beyond 64 bits": ("a.txt", f"1 2\n3 {10**30}\n", "line 2: the item '1000.*is above"),
    "no user": ("a.csv", "who,item\n1,2\n", "one user column.*'who', 'item': say which by user="),
    "no header": ("a.csv", "1,2\n3,4\n", "one user column.*'1', '2'"),
    "two items": ("a.csv", "user,item,movieId\n1,2,3\n", "one item column.*'item', 'movieId'"),
    "no id": ("a.csv", TIMED + ",5,6\n", "line 3: the user is missing"),
    "no time": ("a.csv", TIMED + "1,5,\n", "line 3: the timestamp is neither"),
    "no such time": ("a.csv", TIMED + "1,5,soon\n", "line 3: the timestamp is neither"),
    "long row": ("a.csv", TIMED + "1,2,3,4\n", "line 3: too many fields"),
    "long first row": ("a.csv", "user,item\n1,2,3\n", "line 2: too many fields"),
    "open quote": ("a.csv", 'user,item\n"1,2\n3,4\n', "cannot be parsed"),
    "spanning quote": (
        "a.csv",
        'user,item,text\n1,2,"a\nb"\n,4,c\n',
        "line 4: the user is missing",
    ),
    "words in u.data": ("u.data", "1\t2\t5\t9\n1\tx\t5\t9\n", "line 2: the item 'x' is not an int"),
    "words in .dat": (
        "r.dat",
        "1::2::5::9\nx::2::5::9\n",
        "line 2: the user 'x' is not an integer",
    ),
    "no time in .dat": ("r.dat", "1::2::5\n", "line 1: the timestamp is neither"),
    "no item in .inter": ("a.inter", "user_id:token\tx:float\n1\t2\n", "one item column"),
    "text as parquet": ("a.parquet", "user,item\n1,2\n", "cannot be read as parquet"),
    "null in parquet": (
        "a.parquet",
        pd.DataFrame({"user": ["a", None], "item": ["b", "c"]}).to_parquet(),
        "row 2: the user is missing",
    ),
}


@pytest.mark.parametrize("name, content, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_that_says_what_and_where(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and said.endswith(".") and "\n" not in said
    assert not (tmp_path / "cache").exists()  # nothing half-written


def test_a_cut_parquet_file_is_named(tmp_path):
    whole = pd.DataFrame({"user": range(99), "item": range(99)}).to_parquet()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InputError, match="cannot be read as parquet"):
            load(written(tmp_path, "a.parquet", whole[:size]))


def test_a_missing_file_a_folder_and_an_unknown_name_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="There is no file .*missing.txt"):
        load(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(
        InputError,
        match="Unknown data set 'ml-2m': give known-truth or known-truth-small or known-truth-million or ml-1m",
    ):
        load("ml-2m")


@pytest.mark.parametrize("option", ["min_user", "min_item"])
def test_a_minimum_below_one_is_refused(option):
    with pytest.raises(InputError, match=f"{option} = 0 must be at least 1"):
        load("known-truth", **{option: 0})


@settings(parent=quick, max_examples=150)
@given(
    name=st.sampled_from(["a.txt", "a.csv", "a.tsv", "a.inter", "a.dat", "a.data", "a.parquet"]),
    content=st.one_of(
        st.binary(max_size=40),
        st.text("0123456789 \t\n\r,:\"'-.user_itmdx", max_size=60).map(str.encode),
        st.text('0123 ,\t\n"', max_size=40).map(lambda x: b"user,item,time\n" + x.encode()),
        st.text("0123 ,\t\n:", max_size=40).map(lambda x: b"user\titem\ttime\n" + x.encode()),
    ),
)
@example(name="a.csv", content=b"\r\r\x01")
def test_any_bytes_give_interactions_or_one_sentence(tmp_path, name, content):
    try:
        data = load(written(tmp_path, name, content))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert data.n_interactions == data.offsets[-1] > 0 and data.items.min() == 1


# --- the search for named files, checksums, downloads --------------------------------------------


def test_local_files_are_preferred_to_the_network(project, monkeypatch, tmp_path):
    folder, contents = project
    for name, content in contents.items():
        written(folder, name, content)
    data = load("tiny")
    assert histories(data) == {"1": ["1", "2"], "2": ["2"]} and data.tie_rule == "unknown"
    assert list(data.titles) == ["padding", "\x85 (2000)", "Café (1999)"]
    assert list(data.genres) == ["", "Comedy", "Drama|War"]
    other = tmp_path / "other"
    other.mkdir()
    written(other, "tiny.txt", b"1 1\n")
    monkeypatch.setenv("GSAS_LAB_DATA", str(other))
    with pytest.raises(InputError, match="other/tiny.txt: the checksum"):  # looked for there first
        load("tiny")


@pytest.mark.parametrize("name", ["tiny.txt", "movies.dat", "ids.txt"])
def test_a_changed_local_file_fails_its_checksum(project, name):
    folder, contents = project
    for file, content in contents.items():
        written(folder, file, content + b"\n" * (file == name))
    with pytest.raises(InputError, match=rf"{name}: the checksum \(SHA-256\).*delete it"):
        load("tiny")


def test_a_download_is_verified_kept_and_used_again(project, monkeypatch):
    folder, contents = project
    serve(monkeypatch, contents)
    first = load("tiny")
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"
    } == (contents)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_network)
    assert list(load("tiny").titles) == list(first.titles)


def test_a_download_with_another_checksum_is_not_kept(project, monkeypatch):
    folder, contents = project
    serve(monkeypatch, {**contents, "tiny.txt": contents["tiny.txt"][:-3]})
    with pytest.raises(InputError, match="https://example.org/tiny.txt: the checksum"):
        load("tiny")
    assert [path.name for path in folder.iterdir()] == ["registry.json"]


def test_without_network_one_sentence_says_what_to_do(project):
    with pytest.raises(InputError, match=r"could not be downloaded from .*\(ConnectionError\)"):
        load("tiny")
    assert [path.name for path in project[0].iterdir()] == ["registry.json"]


def test_without_pooch_one_sentence_says_what_to_do(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match="needs pooch: pip install pooch, or download"):
        load("tiny")


def test_titles_that_cannot_be_had_cost_a_warning_only(project):
    folder, contents = project
    written(folder, "tiny.txt", contents["tiny.txt"])
    with pytest.warns(UserWarning, match="tiny is loaded without titles: movies.dat could not"):
        data = load("tiny")
    assert data.titles is None and data.genres is None and data.title(2) == "2"


def test_a_download_that_cannot_be_kept_still_loads(project, monkeypatch):
    _, contents = project
    serve(monkeypatch, contents)
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.warns(UserWarning, match="could not be kept: No space left on device"):
        assert load("tiny").n_users == 2
    assert [path.name for path in project[0].iterdir()] == ["registry.json"]


def test_sizes_other_than_the_registered_are_refused(project):
    folder, contents = project
    for name, content in contents.items():
        written(folder, name, content)
    registry = json.loads((folder / "registry.json").read_text())
    registry["tiny"]["items"] = 3
    (folder / "registry.json").write_text(json.dumps(registry))
    with pytest.raises(InputError, match=r"are \(2, 2, 3\), not the \(2, 3, 3\)"):
        load("tiny")


def test_a_wrong_data_folder_is_named(monkeypatch):
    monkeypatch.setenv("GSAS_LAB_DATA", "nowhere/at/all")
    with pytest.raises(InputError, match="GSAS_LAB_DATA=nowhere/at/all is not a folder"):
        load("ml-1m")


def test_the_registry_is_complete():
    registry = json.loads((ROOT / "data" / "registry.json").read_text())
    assert {"ml-1m", "beauty", "video-games"} <= set(registry)
    for entry in registry.values():
        assert {"title", "licence", "note", "tie_rule", "min_user"} <= set(entry)
        assert {entry["file"], *entry.get("titles", [])} == set(entry["files"])
        assert all(source["url"].startswith("https://") for source in entry["files"].values())


# --- the cache -----------------------------------------------------------------------------------


def full_disk(*paths):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def parses(monkeypatch):
    """How often a file was really parsed."""
    calls, parse = [], interactions._parse
    monkeypatch.setattr(interactions, "_parse", lambda *given: calls.append(given) or parse(*given))
    return calls


def test_the_second_load_comes_from_the_cache_and_is_the_same(tmp_path, parses):
    path = written(tmp_path, "a.csv", "user,item\nx,10\nx,b\ny,c\n")
    first, second = load(path), load(path)
    assert len(parses) == 1
    assert histories(first) == histories(second)
    assert (first.tie_rule, first.sha256) == (second.tie_rule, second.sha256)


def test_the_cache_follows_content_minimum_and_format(tmp_path, parses, monkeypatch):
    path = written(tmp_path, "a.txt", "1 1\n1 2\n2 3\n")
    stat = path.stat()
    load(path)
    path.write_text("1 1\n1 2\n2 4\n")  # same size, and same time:
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert histories(load(path))["2"] == ["4"] and len(parses) == 2
    assert load(path, min_user=2).n_users == 1 and len(parses) == 3
    assert load(path, min_item=1).n_users == 2 and len(parses) == 3
    same_bytes_in_another_form = written(tmp_path, "a.csv", path.read_bytes())
    with pytest.raises(InputError, match="user column"):
        load(same_bytes_in_another_form)
    monkeypatch.setattr(interactions, "_CACHE_FORMAT", -1)
    load(path)
    assert len(parses) == 5


def test_a_damaged_cache_is_rebuilt(tmp_path, parses):
    path = written(tmp_path, "a.txt", "1 1\n1 2\n2 3\n")
    expected = histories(load(path))
    (cache,) = (tmp_path / "cache").iterdir()
    whole = cache.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 97)]
    damaged += [whole[:at] + b"\xff" + whole[at + 1 :] for at in range(0, len(whole), 13)]
    for content in damaged:
        cache.write_bytes(content)
        assert histories(load(path)) == expected
    cache.write_bytes(b"")
    before = len(parses)
    load(path)
    load(path)
    assert len(parses) == before + 1  # rebuilt once, then used


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    path = written(tmp_path, "a.txt", "1 1\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        assert load(path).n_users == 1
    assert list((tmp_path / "cache").iterdir()) == []  # no partial file left
    monkeypatch.setenv("GSAS_LAB_CACHE", str(path))  # a file where the folder should be
    assert load(path).n_users == 1


def test_the_cache_holds_no_pickle(tmp_path):
    load(written(tmp_path, "a.csv", "user,item\nx,y\n"))
    (cache,) = (tmp_path / "cache").iterdir()
    with np.load(cache, allow_pickle=False) as stored:
        assert all(array.dtype != object for array in stored.values())


# --- describe ------------------------------------------------------------------------------------


def test_describe_counts_what_lies_before_the_last_200(tmp_path):
    lines = ["1 1\n", "1 2\n"] + [f"2 {item}\n" for item in range(1, 251)]
    row = describe(load(written(tmp_path, "a.txt", "".join(lines)))).loc["a.txt"]
    assert (row["users"], row["items"], row["interactions"]) == (2, 250, 252)
    assert row["density"] == pytest.approx(252 / 500)
    assert (row["median length"], row["mean length"], row["longest"]) == (126, 126, 250)
    assert row["beyond the last 200"] == pytest.approx(50 / 252)


def test_a_user_is_found_by_the_id_in_the_file_and_a_stranger_is_refused(tmp_path):
    (tmp_path / "toy.txt").write_text("7 1\n7 2\n9 1\n9 3\n")
    loaded = load(tmp_path / "toy.txt")
    assert (loaded.row(7), loaded.row("9")) == (0, 1)
    with pytest.raises(InputError, match="has no user 8: give one of its ids, such as 7, 9"):
        loaded.row(8)


def test_an_item_is_found_by_its_id_or_by_a_title_that_is_its_own(tmp_path):
    (tmp_path / "toy.csv").write_text("user,item\n7,Heat\n7,x2\n9,x3\n9,x4\n")
    titles = np.array(["padding", "One", "Heat", "Twins", "Twins"])
    loaded = replace(load(tmp_path / "toy.csv"), titles=titles)
    assert [loaded.item(name) for name in ("Heat", "x2", "One", "x4")] == [1, 2, 1, 4]
    for name in ("Twins", "padding", "heat", 0):
        with pytest.raises(InputError, match=f"no item '{name}': give an id of its file, such as"):
            loaded.item(name)


# --- columns by any usual name, and the order that follows ---------------------------------------

TOOLS = {  # headers as these tools and data sets write them
    "RecTools": "user_id,item_id,weight,datetime",
    "RePlay": "user_idx,item_idx,relevance,timestamp",
    "Amazon": "reviewerID,asin,overall,unixReviewTime",
    "Amazon 2023": "user_id,parent_asin,rating,timestamp",
    "H&M": "customer_id,article_id,price,t_dat",
    "Steam": "username,product_id,hours,date",
    "Steam 2021": "author.steamid,app_id,language,timestamp_created",
    "KION": "user_id,item_id,watched_pct,last_watch_dt",
    "RetailRocket": "visitorid,itemid,event,timestamp",
    "Yelp": "user_id,business_id,stars,date",
    "a log": "User ID,trackId,plays,event_time",
    "sessions beside users": "userId,itemId,session_id,created_at",
    "dates beside times": "uid,iid,date,unix_timestamp",
}


@pytest.mark.parametrize("header", TOOLS.values(), ids=TOOLS)
def test_a_time_column_by_any_usual_name_orders_the_histories(tmp_path, header):
    content = f"{header}\na,x,3,2019-01-02\na,y,3,2019-01-01\n"
    if "dates" in header or header.endswith("unix_timestamp"):
        content = f"{header}\na,x,2019-01-01,7\na,y,2019-01-02,5\n"
    data = load(written(tmp_path, "a.csv", content))
    assert histories(data) == {"a": ["y", "x"]}
    assert f"by the column '{header.split(',')[3]}'" in data.tie_rule
    assert data.unused == (header.split(",")[2],)  # a weight is not taken in silence


def test_recboles_and_json_lines_names_are_known(tmp_path):
    inter = "user_id:token\tproduct_id:token\ttimestamp:float\na\tx\t2\na\ty\t1.5\n"
    assert histories(load(written(tmp_path, "a.inter", inter))) == {"a": ["y", "x"]}
    lines = '{"reviewerID": "007", "asin": "x", "unixReviewTime": 20000000000000000001}\n' + (
        '{"unixReviewTime": 20000000000000000000, "reviewerID": "007", "asin": 7}\n'
    )
    assert histories(load(written(tmp_path, "a.jsonl", lines))) == {"007": ["7", "x"]}


LOOKS = ["when,2019-05-01", "touched,1556668800", "stamp,1556668800123", "seen,05/01/2019 10:30",
         "moment,May 1 2019", "cal,20190501", "lastUpdated,2019-05-01T10:00:00Z", "time_step,3",
         "event_time_utc_2,7", "watched,2021-05-11", "month,2021-05", "order_id,2021-05-11 10:00",
         "start,12:30:05", "posted,Posted November 5 2011.", "tag,2019年5月1日", "date_id,20190501",
         "day,Monday"]  # fmt: skip


@pytest.mark.parametrize("case", LOOKS)
def test_a_column_that_looks_like_a_time_is_never_dropped_in_silence(tmp_path, case):
    name, value = case.split(",")
    path = written(tmp_path, "a.csv", f"user,item,{name}\n1,2,{value}\n1,3,{value}\n")
    with pytest.raises(InputError, match=f"column '{name}' looks like a time.*time='none'"):
        load(path)
    assert "as asked by time='none'" in load(path, time="none").tie_rule


@pytest.mark.parametrize(
    "case",
    ["rating,5", "title,Heat (1995)", "year,1995", "price,19.99", "birth_date,1990-01-01", "play_time,3",
     "phone,1556668800", "release_date,1995-01-01", "order_id,1556668800", "asin2,B000123456",
     "version,1.2.3", "text,2019 was good", "empty,", "created_by,ann", "weekday,Monday", "utc_offset,3"],
)  # fmt: skip
def test_other_columns_are_not_taken_for_times(tmp_path, case):
    name, value = case.split(",")
    path = written(tmp_path, "a.csv", f"user,item,{name}\n1,3,{value}\n1,2,{value}\n")
    data = load(path)
    assert histories(data) == {"1": ["3", "2"]} and data.unused == (name,)


def test_columns_can_be_named_and_two_candidates_are_refused(tmp_path):
    path = written(tmp_path, "a.csv", "user_id,customer_id,what,step\n1,7,a,2\n1,8,b,1\n")
    with pytest.raises(InputError, match="one user column, .*'user_id', 'customer_id': say which"):
        load(path, item="what")
    data = load(path, user="customer_id", item="what", time="step")
    assert histories(data) == {"7": ["a"], "8": ["b"]} and data.unused == ("user_id",)
    assert histories(load(path, user="user_id", item="what", time="step")) == {"1": ["b", "a"]}
    with pytest.raises(
        InputError, match="has no columns 'which' for item: its header has 'user_id"
    ):
        load(path, user="user_id", item="which")
    with pytest.raises(InputError, match="column 'what' cannot be two things"):
        load(path, user="what", item="what")
    with pytest.raises(InputError, match="known-truth takes no names of columns"):
        load("known-truth", time="none")


# --- ids and times, exactly ----------------------------------------------------------------------


def test_ids_are_the_text_that_stands_there(tmp_path):
    ids = [
        "0108775015",
        "108775015",
        "76561198000000001",
        "76561198000000002",
        "-5",
        "5",
        "1.0",
        "1e3",
    ]
    path = written(tmp_path, "a.csv", "user,item\n" + "".join(f"{x},{x}\n" for x in ids))
    assert histories(load(path)) == {x: [x] for x in ids}
    numbers = written(tmp_path, "b.csv", f"user,item\n{10**17},9\n{10**17 + 1},10\n")
    data = load(numbers)
    assert data.user_ids.dtype == np.int64 and list(data.user_ids) == [10**17, 10**17 + 1]
    assert list(data.item_ids) == [0, 9, 10]


def test_times_are_compared_exactly(tmp_path):
    times = ["1700000000000000001", "1700000000000000000.5", "1700000000000000000",
             "1.6999999999999999999e18", "-1", "-1.5", "1e-300"]  # fmt: skip
    rows = "".join(f"1,{item},{when}\n" for item, when in enumerate(times))
    data = load(written(tmp_path, "a.csv", "user,item,ts\n" + rows))
    assert histories(data) == {"1": ["5", "4", "6", "3", "2", "1", "0"]}
    dates = [
        "2020-01-01T00:00:00.0000000002Z",
        "2020-01-01 01:00:00.0000000001+01:00",
        "2019/12/31Z",
    ]
    rows = "".join(f"1,{item},{when}\n" for item, when in enumerate(dates))
    assert histories(load(written(tmp_path, "b.csv", "user,item,ts\n" + rows))) == {
        "1": ["2", "1", "0"]
    }


MIXED = [("5", "2020-01-01"), ("2020-01-01", "2020-01-02Z"), ("2020-01-01", "20200101")]


@pytest.mark.parametrize("one, other", MIXED)
def test_times_of_two_kinds_are_refused(tmp_path, one, other):
    path = written(tmp_path, "a.csv", f"user,item,ts\n1,2,{one}\n1,3,{other}\n")
    with pytest.raises(InputError, match="line 3: a .*, while the first time is a "):
        load(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(
    "rows, message",
    [
        ('1,2,"Heat\n3,4,b\n5,6,"c"\n', "line 2 cannot be parsed: the quotes"),
        ('1,2,12"\n3,4,"b\n5,6,c\n', "line 3 cannot be parsed: the quotes"),
        ('1,2,"Heat\n3,4,Vinyl 12"\n5,6,c\n', "line 2: a quoted field spans lines and swallows"),
        ('1,2,"Heat\n3,4,b\n7,8,b"\n', "line 2: a quoted field spans lines and swallows"),
        ('1,"2\n3",4\n', "line 2: the item '2.*3' spans lines"),
        ("1,2,a\nuser,item,text\n3,4,b\n", "line 3: the header is repeated"),
        ("1,2,a\nuserId,movieId,text\n3,4,b\n", "line 3: the header is repeated"),
    ],
)
def test_no_row_is_swallowed_or_made(tmp_path, name, rows, message):
    content = f"user,item,text\n{rows}"
    content = content.replace(",", "\t") if name == "a.tsv" else content
    with pytest.raises(InputError, match=message):
        load(written(tmp_path, name, content))


def test_rows_of_unlike_ids_are_swallowed_by_no_quote(tmp_path):
    """They are known by their times; without times, what has as many fields is told."""
    rows = (
        'u1,i1,"Heat,2020-01-02\nJOHN-7,#,b,2020-01-03\nu2,i2,c",2020-01-04\nu1,i2,d,2020-01-05\n'
    )
    with pytest.raises(InputError, match="line 2: a quoted field spans lines and swallows rows"):
        load(written(tmp_path, "a.csv", "user,item,title,date\n" + rows))
    rows = '1,2,"Good.\nWell, rather, good\n"\n1,3,x\n2,3,"a\nb, c"\n'
    path = written(tmp_path, "b.csv", "user,item,text\n" + rows)
    for _ in range(2):  # from the file, then from the cache
        order = interactions.describe(load(path))["order"].item()
        assert order.endswith("; line 2 begins a quoted text that holds a line of 3 fields")
    path = written(tmp_path, "c.csv", 'user,item,text\n1,2,"Good.\nWell, good\n"\n1,3,x\n')
    assert "line" not in load(path).tie_rule
    header, date = "user,item,date,text\n", "2020-01-01"
    rows = f'u1,i2,{date},"G\n5, 4, 3, 2\n"\nu1,i3,{date},x\n'
    assert "line of 4 fields" in load(written(tmp_path, "d.csv", header + rows)).tie_rule
    with pytest.raises(InputError, match="swallows rows"):  # numbers, where ids are numbers
        load(written(tmp_path, "e.csv", header + rows.replace("u", "").replace("i", "")))


@pytest.mark.parametrize(
    "first, mark",
    [
        ("sep=;\n", ";"),
        ("", ";"),
        ("", "|"),
        ("", "\t"),
        ("\ufeffsep=|\r\n", "|"),
        ("SEP=,\n", ","),
    ],
)
def test_a_csv_of_another_separator_is_read_as_its_header_says(tmp_path, first, mark):
    rows = 'user¦item¦title¦time\n1¦2¦a¦5\n1¦3¦"x¦y"¦4\n'.replace("¦", mark)
    assert histories(load(written(tmp_path, "a.csv", first + rows))) == {"1": ["3", "2"]}
    path = written(tmp_path, "b.csv", "sep=;\nuser;item;time\n1;2;5\n1;3;x\n")
    with pytest.raises(InputError, match="line 4: the timestamp"):
        load(path)


def test_quotes_behind_a_blank_and_a_key_twice_and_narrow_floats(tmp_path):
    path = written(tmp_path, "a.csv", 'user, item, time\n"1", "3", "6"\n"1", 2, "5"\n')
    assert histories(load(path)) == {"1": ["2", "3"]}
    path = written(tmp_path, "a.jsonl", '{"user":1,"item":2}\n{"user":1,"item":2,"user":5}\n')
    with pytest.raises(InputError, match="line 2: no JSON .a key stands there twice"):
        load(path)
    frame = pd.DataFrame({"user": np.array([2**24, 1], np.float32), "item": [3, 2]})  # 2^24 + 1 too
    with pytest.raises(InputError, match="row 1: the user is a float beyond 2\\^24"):
        load(frame)
    assert load(frame.assign(user=np.float32(2**24 - 1))).user_ids.tolist() == [2**24 - 1]
    path = written(tmp_path, "a.csv.zip", _zipped(b""))
    with pytest.raises(InputError, match="holds no file"):
        load(path)


def test_a_changed_byte_is_another_data_set(tmp_path):
    path = written(tmp_path, "a.csv", "user,item,x\n1,2,a\n1,3,b\n")
    one = load(path)
    assert interactions.describe(one)["sha256"].item() == one.sha256[:12]
    other = load(written(tmp_path, "a.csv", "user,item,x\n1,2,a\n1,3,c\n"))
    assert one.sha256 != other.sha256


def test_prose_in_several_lines_is_no_row(tmp_path):
    text = '"Good, really.\nI, for one,\n like ""it"", a lot"'
    content = f"user,item,text\n1,2,{text}\n1,3,{text}\n"
    assert histories(load(written(tmp_path, "a.csv", content))) == {"1": ["2", "3"]}
    content = f"text,user,item\n{text},1,2\n{text},1,3\n"
    assert histories(load(written(tmp_path, "b.csv", content))) == {"1": ["2", "3"]}


def test_a_long_id_is_refused_and_costs_no_memory(tmp_path):
    rows = "".join(f"u{user},i{user % 9}\n" for user in range(5000))
    path = written(tmp_path, "a.csv", f"user,item\n{rows}{'x' * 1_000_000},1\n")
    tracemalloc.start()
    with pytest.raises(InputError, match="line 5002: the user has 1,000,000 characters, more than"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    longest = "x" * reading.LONGEST_ID
    assert load(written(tmp_path, "b.csv", f"user,item\n{longest},1\n")).user_ids[0] == longest


# --- packed files, tables in memory, paths -------------------------------------------------------


def _zipped(data, *names):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return packed.getvalue()


PACKED = {
    "a.csv.gz": gzip.compress,
    "a.csv.bz2": bz2.compress,
    "a.csv.xz": lzma.compress,
    "a.csv.zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
    "a.zip": lambda data: _zipped(data, "deep/a.csv"),
    "a.csv.zip": lambda data: _zipped(data, "a.csv", "__MACOSX/._a.csv"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_read_and_damaged_ones_refused(tmp_path, name):
    data = b"user,item,time\n" + b"".join(
        b"%d,%d,%d\n" % (i, i % 7, i * i % 11) for i in range(500)
    )
    right = histories(load(written(tmp_path, "plain.csv", data)))
    packed = PACKED[name](data)
    assert histories(load(written(tmp_path, name, packed))) == right
    for damaged in (packed[: len(packed) // 2], packed[:9], b"", b"user,item\n1,2\n"):
        with pytest.raises(InputError, match=r"cannot be unpacked|is empty"):
            load(written(tmp_path, name, damaged))


def test_an_archive_of_several_files_and_a_bomb_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds 2 files .a.csv, b.csv.: unpack it"):
        load(written(tmp_path, "a.zip", _zipped(b"user,item\n1,2\n", "a.csv", "b.csv")))
    monkeypatch.setattr(reading, "_UNPACKED", 1 << 20)
    for name in ("a.csv.gz", "a.csv.zst"):
        with pytest.raises(InputError, match="unpacks to over 1 MiB"):
            load(written(tmp_path, name, PACKED[name](bytes(1 << 22))))


def test_a_table_in_memory_gives_what_its_file_gives(tmp_path):
    table = pd.DataFrame({"user_id": ["b", "a", "b"], "item_id": [3, 1, 2], "datetime": [5, 4, 1]})
    data = load(table)
    assert histories(data) == {"a": ["1"], "b": ["2", "3"]} and data.name == "table"
    assert histories(load(table.set_index("user_id"))) == histories(data)
    assert histories(load(table.astype({"user_id": "category"}))) == histories(data)
    assert load(table).sha256 == data.sha256 != load(table[:2]).sha256
    assert histories(load(table, min_user=2)) == {"b": ["2", "3"]}
    for wrong in (None, 3, [1, 2], {"user": [1]}):
        with pytest.raises(InputError, match="A data set is a name, a path or a DataFrame"):
            load(wrong)


NOW = pd.Timestamp("2020-01-01")
ODD = {
    "bytes": ([b"a", "caf\xe9".encode()], {"a", "café"}),
    "bytes that are no text": ([b"a", b"\xff"], "row 2: the user is bytes that are no text"),
    "whole floats": ([1.0, 2.0], {"1", "2"}),
    "fractions": ([1.0, 2.5], "row 2: the user 2.5 is no whole number"),
    "large floats": ([1.0, 2.0**60], "row 2: the user .* is no whole number"),
    "lists": ([[1], [2]], "row 1: the user is a list or an object"),
    "dicts": ([{"a": 1}, {"a": 2}], "row 1: the user is a list or an object"),
    "truths": ([True, False], "row 1: the user is true or false"),
    "dates": ([NOW, NOW], "row 1: the user is a Timestamp, no id"),
    "decimals": ([Decimal(7), Decimal("8.5")], "row 2: the user 8.5 is no whole number"),
    "large integers": ([2**63, 1], {str(2**63), "1"}),
    "missing": (["a", None], "row 2: the user is missing"),
    "empty": (["a", " "], "row 2: the user is missing"),
}


@pytest.mark.parametrize("form", ["frame", "parquet"])
@pytest.mark.parametrize("values, told", ODD.values(), ids=ODD)
def test_ids_of_every_type_are_right_or_refused(tmp_path, values, told, form):
    given = pd.DataFrame({"user": values, "item": [1, 2]})
    if form == "parquet":
        given.to_parquet(tmp_path / "a.parquet")
        given = tmp_path / "a.parquet"
    if isinstance(told, str):
        with pytest.raises(InputError, match=told):
            load(given)
    else:
        assert set(histories(load(given))) == told


@pytest.mark.parametrize(
    "times",
    [
        pd.to_datetime(["2020-01-02", "2020-01-01"]),
        pd.to_datetime(["2020-01-02", "2020-01-01"], utc=True),
        [date(2020, 1, 2), date(2020, 1, 1)],
        [Decimal("1.5"), Decimal("1.25")],
        np.array([2, 1], np.uint64) + np.uint64(2**63),
        np.array([2.5, -1], np.float32),
        pd.array([2, 1], "Int64"),
        ["2020-01-02", "2020-01-01"],
    ],
    ids=str,
)
def test_times_of_every_type_are_ordered(tmp_path, times):
    table = pd.DataFrame({"user": [1, 1], "item": [1, 2], "time": times})
    assert histories(load(table)) == {"1": ["2", "1"]}
    table.to_parquet(tmp_path / "a.parquet")
    assert histories(load(tmp_path / "a.parquet")) == {"1": ["2", "1"]}


def test_whatever_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    for wrong in (
        "a\0b.csv",
        "~nobody-of-this-name/a.csv",
        "",
        "x" * 5000 + ".csv",
        tmp_path / "no",
    ):
        with pytest.raises(InputError):
            load(wrong)
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="cannot be read|There is no file"):
        load(loop)
    path = written(tmp_path, "a.csv", "user,item\n1,2\n")
    monkeypatch.setattr(Path, "read_bytes", full_disk)
    with pytest.raises(InputError, match="a.csv cannot be read .No space left"):
        load(path)


def test_a_files_name_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(b"\xe9t\xe9.csv")
    data = load(written(tmp_path, name, "user,item\n1,2\n"))
    assert data.name == r"\xe9t\xe9.csv" and histories(data) == {"1": ["2"]}


def test_a_damaged_archive_of_a_download_is_one_sentence(project, monkeypatch):
    folder, contents = project
    serve(monkeypatch, contents)
    whole = pooch.HTTPDownloader.__call__

    def cut(self, url, output_file, pooch, check_only=False):
        whole(self, url, output_file, pooch)
        if url.endswith(".zip"):
            data = bytearray(output_file.getvalue())
            data[40:60] = bytes(20)
            output_file.seek(0)
            output_file.truncate()
            output_file.write(bytes(data))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", cut)
    with pytest.warns(UserWarning, match="without titles: movies.dat could not be downloaded"):
        load("tiny")


def test_describe_says_the_order_what_is_taken_again_and_what_is_not_used(tmp_path):
    content = "user,item,weight,date\n1,1,9,2019-01-01\n1,1,9,2019-01-02\n2,1,9,2019-01-01\n2,2,9,2019-01-02\n"
    row = describe(load(written(tmp_path, "a.csv", content))).loc["a.csv"]
    assert row["interactions taken again"] == 1 / 4 and row["test targets seen before"] == 1 / 2
    assert row["columns not used"] == "weight" and "by the column 'date'" in row["order"]


def test_the_command_line_names_columns(tmp_path, capsys):
    path = written(tmp_path, "a.csv", "who,what,step\n1,2,2\n1,3,1\n")
    assert main(["describe", str(path)]) == 2
    assert "say which by user='…'" in capsys.readouterr().err
    assert main(["describe", str(path), "--user=who", "--item=what", "--time=step"]) == 0
    assert "by the column 'step'" in capsys.readouterr().out


def test_odd_headers_are_told_shortly(tmp_path):
    names = "".join(f",c{at}" for at in range(200))
    path = written(tmp_path, "a.csv", f"user,item,\x1b[1mx{names}\n1,2,3{',4' * 200}\n")
    told = describe(load(path)).loc["a.csv"]["columns not used"]
    assert told.startswith(r"\x1b[1mx, c0, ") and len(told) < 100
    path = written(tmp_path, "a.csv", f"user,item,{'x' * 10**6}\n1,2,3\n")
    with pytest.raises(InputError, match="the name of a column has 1,000,000 characters"):
        load(path)
