"""Recommendations for everybody: as for one, whatever kills the call; vectors that give the scores."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gsas_lab import __main__ as command_line
from gsas_lab import files, ranking, repairs, runs, serving
from gsas_lab.errors import InputError
from gsas_lab.kernels import native, scan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def parts(monkeypatch):
    """Parts of 70 users, so that 300 make five."""
    monkeypatch.setattr(serving, "_PART", 70)


@pytest.fixture(params=["scores", "scanned"])
def route(request, monkeypatch):
    """Both ways to rank a catalogue, whatever its size and the machine."""
    if request.param == "scanned":
        monkeypatch.setattr(ranking, "_SCANNED", 1)
        monkeypatch.setattr(scan, "fast", lambda d: native.load() is not None)
    return request.param


CHANGES = {
    "gBCE": {"loss": "gbce", "t": 0.75, "theory_start": True},
    "softmax": {"loss": "softmax"},
    "BPR": {"loss": "bpr"},
    "popularity": {"model": "popularity"},
    "logQ by popularity": {"loss": "sampled_softmax", "logq": True, "sampler": "popularity"},
    "gBCE by popularity": {"loss": "gbce", "sampler": "popularity"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("exclude", [True, False])
def test_everybody_gets_what_recommend_gives_one(
    small_world, tmp_path, parts, route, change, exclude
):
    run = runs.train(replace(small_world, epochs=1, **change))
    known = run.data.interactions
    found = pd.read_parquet(
        serving.recommend_all(run, tmp_path / "recs.parquet", 7, exclude_seen=exclude)
    )
    assert list(found.columns) == ["user", "rank", "item", "probability", "raw"]
    assert len(found) == 7 * known.n_users and not (tmp_path / "recs.parquet.parts").exists()
    for user in (0, 69, 70, 150, 299):
        history = known.item_ids[known.history(user)].tolist()
        one = run.recommend(history, 7, exclude_seen=exclude).drop(columns="title")
        own = found[found["user"] == known.user_ids[user]].drop(columns="user")
        pd.testing.assert_frame_equal(
            own.reset_index(drop=True), one, check_dtype=False, rtol=1e-4, atol=1e-7
        )


def test_a_repair_gives_the_probabilities_and_keeps_the_order(small_world, tmp_path, parts, route):
    for loss in ("gbce", "softmax"):
        run = runs.train(replace(small_world, epochs=1, loss=loss))
        repair = repairs.Logistic(0.5, -1.0)
        plain = pd.read_parquet(serving.recommend_all(run, tmp_path / "a.parquet", 5))
        made = pd.read_parquet(serving.recommend_all(run, tmp_path / "b.parquet", 5, repair=repair))
        assert made["item"].equals(plain["item"]) and made["raw"].equals(plain["raw"])
        history = run.data.interactions.history(3)
        one = run.recommend(history.tolist(), 5, repair=repair)["probability"]
        np.testing.assert_allclose(made["probability"][15:20], one, rtol=1e-4)


def test_a_repair_by_group_goes_by_the_items_that_are_shown(small_world, tmp_path, parts, route):
    run = runs.train(replace(small_world, epochs=1))
    n_items = run.data.split.n_items
    groups = tuple(str(item % 3) for item in range(n_items))
    repair = repairs.ByGroup(("0", "1", "2"), (-3.0, 0.0, 3.0), 0.0, groups)
    for n in (5, n_items):  # as wide as the catalogue, and in the order of the ranks
        path = serving.recommend_all(run, tmp_path / f"{n}.parquet", n, False, repair)
        found = pd.read_parquet(path)
        history = run.data.interactions.history(3).tolist()
        one = run.recommend(history, n, False, repair)["probability"]
        np.testing.assert_allclose(found["probability"][3 * n : 4 * n], one, rtol=1e-4)
    other = replace(repair, items=groups[:-1])
    with pytest.raises(InputError, match="groups of 59 items, and this catalogue has 60"):
        serving.recommend_all(run, tmp_path / "other.parquet", 5, repair=other)
    with pytest.raises(InputError, match="groups of 59 items, and this catalogue has 60"):
        run.recommend(history, repair=other)


def test_matrix_factorisation_serves_its_users(small_world, tmp_path, parts, route):
    run = runs.train(replace(small_world, epochs=1, model="mf", loss="bpr"))
    found = pd.read_parquet(serving.recommend_all(run, tmp_path / "a.parquet", 3))
    scores = run.model.score(torch.tensor([200]))[0].detach()
    assert found["item"][600] == scores.argmax() and found["probability"].isna().all()


def test_a_user_who_has_seen_nearly_all_gets_fewer_rows(small_world, tmp_path, route):
    run = runs.train(replace(small_world, epochs=1))
    known = run.data.interactions
    found = pd.read_parquet(serving.recommend_all(run, tmp_path / "a.parquet", 10**6, True))
    seen = [len(np.unique(known.history(user))) for user in range(known.n_users)]
    assert found.groupby("user").size().tolist() == [known.n_items - n for n in seen]


def test_a_killed_call_goes_on_after_its_last_part(small_world, tmp_path, monkeypatch, parts):
    run = runs.train(replace(small_world, epochs=1))
    whole = serving.recommend_all(run, tmp_path / "whole.parquet", 4).read_bytes()
    made, recommended = [], serving._recommended

    def killed(run, some, *more):
        made.append(int(some.users[0]))
        if len(made) == 3:
            raise KeyboardInterrupt
        return recommended(run, some, *more)

    monkeypatch.setattr(serving, "_recommended", killed)
    path = tmp_path / "recs.parquet"
    with pytest.raises(KeyboardInterrupt):
        serving.recommend_all(run, path, 4)
    assert not path.exists() and made == [0, 70, 140]
    with pytest.raises(InputError, match="recs.parquet.parts holds the parts of another call"):
        serving.recommend_all(run, path, 5)
    serving.recommend_all(run, path, 4)
    assert made == [0, 70, 140, 140, 210, 280] and path.read_bytes() == whole
    assert not (tmp_path / "recs.parquet.parts").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-30],
        lambda content: b"",
        lambda content: b"hello",
        lambda content: content[:99] + bytes([content[99] ^ 8]) + content[100:],
    ],
)
def test_a_part_that_was_damaged_since_is_made_again(small_world, tmp_path, parts, damage):
    run = runs.train(replace(small_world, epochs=1))
    whole = serving.recommend_all(run, tmp_path / "whole.parquet", 4).read_bytes()
    path, kept = tmp_path / "recs.parquet", tmp_path / "recs.parquet.parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.files, "write", _first_three(serving.files.write))
        with pytest.raises(KeyboardInterrupt):
            serving.recommend_all(run, path, 4)
    part = sorted(kept.glob("*.parquet"))[1]
    part.write_bytes(damage(part.read_bytes()))
    assert serving.recommend_all(run, path, 4).read_bytes() == whole and not kept.exists()
    kept.mkdir()
    (kept / part.name).write_bytes(b"")
    with pytest.raises(InputError, match="parts of nobody knows what"):
        serving.recommend_all(run, path, 4)


def _first_three(write):
    made = []

    def killed(path, content):
        if path.suffix == ".parquet":
            made.append(path)
        if len(made) == 4:
            raise KeyboardInterrupt
        write(path, content)

    return killed


def test_only_recommendations_are_overwritten(small_world, tmp_path):
    run = runs.train(replace(small_world, epochs=1))
    data = tmp_path / "data.csv"
    data.write_text("user,item", encoding="utf-8")
    pd.DataFrame({"user": [1], "item": [2]}).to_parquet(tmp_path / "data.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "text.parquet").write_text("mine", encoding="utf-8")
    for name in ("data.parquet", "text.parquet", "pipe.parquet"):
        with pytest.raises(InputError, match="holds no recommendations and would be overwritten"):
            serving.recommend_all(run, tmp_path / name, 3)
    for path in (data, run.folder / "model.safetensors", tmp_path / "recs"):
        with pytest.raises(InputError, match="let its name end in .parquet"):
            serving.recommend_all(run, path, 3)
    assert data.read_text(encoding="utf-8") == "user,item" and not run.damaged()
    path = serving.recommend_all(run, tmp_path / "a.parquet", 3)
    assert len(pd.read_parquet(serving.recommend_all(run, path, 2))) == 600
    with pytest.raises(InputError, match="no repair and would be overwritten"):
        repairs.save(repairs.Logistic(1.0), data)
    with pytest.raises(InputError, match="File name too long"):
        serving.recommend_all(run, tmp_path / ("a" * 300 + ".parquet"), 3)
    for given in ("no", 0, []):
        with pytest.raises(InputError, match="give True, False or None"):
            serving.recommend_all(run, path, 3, given)


KILLED = """
import os, sys
from gsas_lab import __main__, serving
serving._PART, recommended, calls = 7, serving._recommended, []
def killed(*given):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    return recommended(*given)
serving._recommended = killed
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_the_command_goes_on_after_kill_9(tmp_path, monkeypatch, capsys):
    rows = [(user, (user * 7 + at * at) % 23) for user in range(40) for at in range(6)]
    lines = "\n".join(f"u{user},i{item}" for user, item in rows)
    (tmp_path / "toy.csv").write_text(f"user,item\n{lines}\n")
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GSAS_LAB_CACHE", str(tmp_path / "cache"))
    settings = runs.Settings(
        dataset=str(tmp_path / "toy.csv"), d=16, blocks=1, epochs=1, max_length=6, k=2,
        validation_users=5, device="cpu",
    )  # fmt: skip
    folder = str(runs.train(settings).folder)
    words = ["recommend", folder, "--n", "3", "--output", str(tmp_path / "recs.parquet")]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=ROOT, check=False)
    assert done.returncode == -9 and not (tmp_path / "recs.parquet").exists()
    assert len(list((tmp_path / "recs.parquet.parts").glob("*.parquet"))) == 3
    monkeypatch.setattr(serving, "_PART", 7)
    assert command_line.main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "recs.parquet")
    found = pd.read_parquet(tmp_path / "recs.parquet")
    assert len(found) == 120 and set(found["user"]) == {f"u{user}" for user in range(40)}
    assert set(found["item"]) <= {f"i{item}" for item in range(23)}
    assert command_line.main(["recommend", folder]) == 2
    assert command_line.main([*words[:2], "i1", *words[2:]]) == 2
    assert (
        capsys.readouterr().err.count("recommend takes the items of one history, or --output") == 2
    )


def test_vectors_and_their_offset_give_the_scores(small_world, tmp_path):
    run = runs.train(replace(small_world, epochs=1, loss="gbce", theory_start=True))
    folder = serving.write_vectors(run, tmp_path / "vectors")
    told = json.loads((folder / "vectors.json").read_text())
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}
    known = run.data.interactions
    everyone = serving._everyone(run)
    scores = arrays["users"] @ arrays["items"].T + told["offset"]
    np.testing.assert_allclose(scores, run.scores(everyone), rtol=1e-4, atol=1e-5)
    assert told["offset"] != 0 and told["log(β/α)"] == pytest.approx(run.fixed_point.offset)
    assert arrays["item_ids"].tolist() == known.item_ids[1:].tolist()
    assert arrays["user_ids"].tolist() == known.user_ids.tolist()
    with pytest.raises(InputError, match="its scores are no products"):
        serving.write_vectors(runs.train(replace(small_world, model="popularity")), tmp_path / "x")


def test_a_mistake_is_one_sentence(small_world, tmp_path, monkeypatch):
    run = runs.train(replace(small_world, epochs=1))
    for n in (0, True, 2.5):
        with pytest.raises(InputError, match="give a whole number, 1 or more"):
            serving.recommend_all(run, tmp_path / "a.parquet", n)
    with pytest.raises(InputError, match="is a folder: name a file"):
        serving.recommend_all(run, tmp_path)
    with files.locked(tmp_path / "a.parquet.parts"):
        pass
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):
        serving.recommend_all(run, tmp_path / "a.parquet")
