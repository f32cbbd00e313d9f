"""Sweep folders damaged at random: what they hold is what was measured, or one sentence.

Two in three are as earlier versions left them, without checksums: there a number that does not follow
from ranks (seconds, sums) cannot be checked.
"""

import csv
import io
import json
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fuzz.damage import in_bytes, tried
from gsas_lab import files, metrics, results, runs, sweeps
from gsas_lab.errors import InputError

FILES = ("sweep.json", "results.csv", "ranks.npz", "histories.csv")
CELLS = [
    "", "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 400, "True", "NA", "None", "null", "x",
    "done", "failed", "softmax", "é", "\x00", "=1+1", "a\nb", "[[]]", "2026", "popularity", "\ud800",
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 2.5, 10**400, 1e308, float("nan"), float("inf"), "", "x", "nan", "\ud800",
    "popularity", [], {}, [[1]], {"a": {}}, "x" * 5000,
]  # fmt: skip
ARRAYS = [
    np.array([1, 2, 3]), np.array([0]), np.zeros((2, 2), int), np.array(["a"]), np.array(5),
    np.array([1.5]), np.array([np.nan]), np.array([]), np.array([True]), np.array([2**63], np.uint64),
    np.array([None, {}], object), np.array([1 + 2j]), np.array(["2020"], "datetime64[D]"),
]  # fmt: skip


def _csv(rng, path):
    """Columns and rows of a table gone, twice, renamed or swapped, or a cell of something else."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    width, kind = len(rows[0]), rng.randrange(8)
    column, row = rng.randrange(width), rng.randrange(len(rows))
    if kind == 0:
        rows = [line[:column] + line[column + 1 :] for line in rows]
    elif kind == 1:
        rows = [[*line, line[column]] for line in rows]
    elif kind == 2:
        del rows[row]
    elif kind == 3:
        rows.insert(row, rows[rng.randrange(len(rows))])
    elif kind == 4:
        rows[row] = rows[row][:column]
    elif kind == 5:
        other = rng.randrange(len(rows))
        rows[row][column], rows[other][column] = rows[other][column], rows[row][column]
    elif kind == 6:
        rows = [line[column:] + line[:column] for line in rows]
    else:
        rows[row][column] = rng.choice(CELLS)
    content = io.StringIO(newline="")
    csv.writer(content).writerows(rows)
    path.write_bytes(content.getvalue().encode(errors="surrogatepass"))


def _json(rng, path):
    """A key anywhere gone or renamed, or a value of something else, at times very deep."""
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    while True:
        key = rng.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    kind = rng.randrange(5)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[rng.choice(["x", "", "dataset", "\x00"])] = place.pop(key)
    elif kind == 2:
        place[key] = "DEEP"
    else:
        place[key] = rng.choice(VALUES)
    depth = rng.choice([50, 900, 5_000, 100_000])
    deep = "[" * depth + "]" * (depth * rng.randrange(2))
    path.write_text(json.dumps(content).replace('"DEEP"', deep), encoding="utf-8")


def _npz(rng, path):
    """An array gone, or of another kind, length or order."""
    with np.load(io.BytesIO(path.read_bytes())) as saved:
        arrays = dict(saved)
    key, kind = rng.choice(sorted(arrays)), rng.randrange(4)
    if kind == 0:
        del arrays[key]
    elif kind == 1:
        arrays[key] = rng.choice(ARRAYS)
    elif kind == 2:
        arrays[key] = arrays[key][: rng.randrange(len(arrays[key]))]
    else:
        arrays[key] = np.concatenate([arrays[key], [1]])
    np.savez(path, **arrays)


def _damage(rng, folder):
    path = folder / rng.choice(sorted(each.name for each in folder.iterdir()) or FILES)
    kind = rng.randrange(8)
    if not path.is_file() or path.is_symlink():
        return
    if kind < 5:
        try:
            {".json": _json, ".npz": _npz}.get(path.suffix, _csv)(rng, path)
            return
        except Exception:  # damaged before: it is no such file any more
            pass
    if kind < 7:
        path.write_bytes(in_bytes(rng, path.read_bytes()))
        return
    path.unlink()
    place = rng.randrange(5)
    if place == 0:
        path.symlink_to(path.name)
    elif place == 1:
        path.mkdir()
    elif place == 2:
        os.mkfifo(path)
    elif place == 3:
        shutil.copy(folder.parent / "whole" / rng.choice(FILES), path)


@pytest.fixture
def whole(small_world, tmp_path, monkeypatch):
    """The folder of a sweep: a system of two seeds, Popularity, one run named NA, and one failed."""
    tiny = replace(small_world, d=4, epochs=2, max_length=6, batch_size=300, loss="gbce")
    named = {"gSASRec, seed = 1": tiny, "gSASRec, seed = 2": replace(tiny, seed=2)}
    named |= {"NA": replace(tiny, model="popularity"), "gone": replace(tiny, dataset="gone.csv")}
    there = runs.load_data

    def load_data(settings):
        if settings.dataset == "gone.csv":
            raise InputError("gone.csv does not exist.")
        return there(settings)

    monkeypatch.setattr(runs, "load_data", load_data)
    for settings in list(named.values())[:3]:
        runs.train(settings)
    sweeps.run(named, tmp_path / "whole", at_once=1, show=lambda _: None)
    return tmp_path / "whole"


def _checked(found, right):
    """All that is made of a folder, where it can be made, and what follows from ranks."""
    for name, ranks in found.ranks.items():
        assert ranks.tolist() in [each.tolist() for each in right.ranks.values()]
        assert found.table.loc[name, "ndcg@10"] == pytest.approx(metrics.ndcg(ranks, 10).mean())
        settings = found.record["runs"][name]["settings"]
        for setting in ("seed", "k", "t"):
            assert found.table.loc[name, setting] == settings.get(
                setting, getattr(runs.Settings, setting)
            )
    assert sum(found.systems.values(), []) == list(found.ranks) == list(found.written.index) or (
        len(found.systems) < len(found.ranks)
    )
    assert found.source and found.dataset is not None
    for use in (
        lambda: found.by_k(),
        lambda: found.grid(),
        lambda: found.marks(next(iter(found.ranks))),
    ):
        if found.ranks:
            tried(use)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_sweep_gives_what_was_measured_or_a_sentence(whole, fuzz, monkeypatch):
    monkeypatch.setattr(metrics, "bootstrap_interval", lambda values: (0.0, 1.0))  # takes longest
    right = results.load(whole)
    before = json.loads((whole / "sweep.json").read_bytes())
    before.pop("manifest")
    told = {"loaded": 0, "told": 0, "other numbers": 0}  # those that no ranks prove wrong
    for number in range(fuzz):
        rng = random.Random(number)
        folder = whole.parent / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in FILES:
            shutil.copy(whole / name, folder)
        if checked := number % 3 == 0:
            shutil.copy(whole / files.MANIFEST, folder)
        else:
            files.write_json(folder / "sweep.json", before)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            _damage(rng, folder)
        try:
            found = tried(lambda folder=folder: results.load(folder))
            told["told" if found is None else "loaded"] += 1
            if found is not None:
                _checked(found, right)
                other = not found.shown.equals(right.shown)
                told["other numbers"] += other
                assert not (checked and other), "a number that was not measured"
                if number % 20 == 0:
                    tried(lambda folder=folder: results.write_report(folder))
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
    assert min(told["loaded"], told["told"]) > 0 or fuzz < 40
    print(told)
