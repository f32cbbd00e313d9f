"""Run folders damaged at random: the right result bit for bit, or one sentence."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest

from fuzz.damage import in_bytes, tried
from gsas_lab import files, runs


def _json(random, path):
    """One value of a JSON file edited, or one key gone."""
    try:
        content = json.loads(path.read_text())
        key = random.choice(sorted(content))
    except (ValueError, LookupError, TypeError):
        return
    values = [None, -1, 0, 1.5, "x", "known-truth-small", [], {}, True, 10**400, "\ud800"]
    content[key] = random.choice(values)
    if random.random() < 0.2:
        del content[key]
    path.write_text(json.dumps(content))


def _damage(random, folder, other):
    """One random thing done to a folder."""
    present = sorted(path for path in folder.iterdir() if path.is_file() or path.is_symlink())
    path = random.choice(present) if present else folder / "settings.json"
    kind = random.randrange(10)

    def put(source):
        data = source.read_bytes()
        path.unlink()
        path.write_bytes(data)

    plain = [each for each in present if each.is_file() and not each.is_symlink()]
    if kind < 4 and path in plain:
        path.write_bytes(in_bytes(random, path.read_bytes()))
    elif kind == 4 and path.suffix == ".json" and path in plain:
        _json(random, path)
    elif kind == 5:
        path.unlink(missing_ok=True)
    elif kind == 6 and path in plain and (other / path.name).exists():
        put(other / path.name)  # another run's
    elif kind == 7 and path in plain:
        put(random.choice(plain))
    elif kind == 8:
        path.unlink(missing_ok=True)
        place = random.randrange(4)
        if place == 0:
            path.symlink_to(folder / random.choice(["nowhere", path.name, "lock"]))
        elif place == 1:
            path.symlink_to(other / path.name)
        elif place == 2:
            path.mkdir()
        else:
            os.mkfifo(path)
    else:
        extra = ["model.pt", "notes.txt", "metrics.json.partial", "checkpoint.pt"]
        name = random.choice(extra)
        if not (folder / name).exists() and not (folder / name).is_symlink():
            (folder / name).write_bytes(random.randbytes(20))


@pytest.fixture
def world(small_world, tmp_path):
    """A run, finished and after one epoch of two, another run, and the right answers."""
    settings = replace(small_world, d=4, epochs=2, max_length=6, batch_size=300)
    other = runs.train(replace(settings, seed=2)).folder

    def stop(history):
        if len(history) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(settings, on_epoch=stop)
    folder = files.runs_folder() / runs.identity(settings, runs.load_data(settings))
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    whole = tmp_path / "whole"
    shutil.copytree(runs.train(settings).folder, whole)
    return settings, folder, half, whole, other


READ = {
    "settings": lambda run: run.settings,
    "metrics": lambda run: {n: v for n, v in run.metrics.items() if not n.endswith("seconds")},
    "history": lambda run: run.history[["epoch", "loss", "ndcg@10"]].values.tolist(),
    "ranks": lambda run: run.ranks.tolist(),
    "recommend": lambda run: run.recommend([3, 17, 41]).values.tolist(),
    "outcome": lambda run: run.outcome.ranks.tolist(),
}


def _same(run, right):
    """Is all that one reads of it as it should be, where it can be read at all?"""
    for name, read in READ.items():
        found = tried(lambda read=read: read(run))
        assert found is None or found == right[name], name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_run_gives_the_right_result_or_a_sentence(world, fuzz, monkeypatch):
    settings, folder, half, whole, other = world
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(files.os, "fsync", lambda number: None)
    monkeypatch.setattr(runs, "_commit", lambda: "none")
    right = {name: read(runs.Run(settings, whole)) for name, read in READ.items()}
    told = {"load": 0, "train": 0, "told": 0}
    for number in range(fuzz):
        rng = random.Random(number)
        finished = number % 10 > 0  # a training is what costs time
        shutil.rmtree(folder)
        shutil.copytree(whole if finished else half, folder)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            _damage(rng, folder, other)
        try:
            loaded = tried(lambda: runs.load(folder))
            if loaded is not None and loaded.manifest is not None:
                told["load"] += 1
                if loaded.manifest["identity"] == folder.name:
                    _same(loaded, right)
            trained = tried(lambda: runs.train(settings))
            if trained is None:
                told["told"] += 1
            else:
                told["train"] += 1
                _same(trained, right)
        except BaseException as error:
            error.add_note(f"case {number}: {sorted(path.name for path in folder.iterdir())}")
            raise
    assert min(told.values()) > 0 or fuzz < 40
    print(told)
