"""A run folder serves anywhere, knows its files, and is found again by content."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsas_lab import __main__ as command_line
from gsas_lab import experiment, files, ranking, runs, shelf, sweeps
from gsas_lab.errors import InputError
from gsas_lab.kernels import native
from gsas_lab.settings import Settings


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Settings of a run on a file of one's own."""
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GSAS_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [f"u{u},film {(u * 7 + i * 3) % 20},{i}" for u in range(40) for i in range(6)]
    Path("file.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return Settings(
        dataset="file.csv", d=8, blocks=1, max_length=6, epochs=1, k=2, validation_users=10,
        batch_size=16, device="cpu",
    )  # fmt: skip


def test_one_file_by_any_name_and_device_is_one_run(own, tmp_path):
    shutil.copy("file.csv", "other.csv")
    os.symlink("file.csv", "link.csv")
    run = runs.train(own)
    same = {
        runs.train(replace(own, **change)).folder
        for change in (
            {"dataset": "./file.csv"},
            {"dataset": str(tmp_path / "file.csv")},
            {"dataset": "other.csv"},
            {"dataset": "link.csv"},
            {"min_user": 2},  # which drops nobody
            {"exclude_seen": True},  # which a file's protocol is anyway
        )
    }
    assert same == {run.folder}
    if runs.choose_device("auto").type == "cpu":
        assert runs.train(replace(own, device="auto")).folder == run.folder
    assert runs.train(replace(own, exclude_seen=False)).folder != run.folder


def test_a_changed_default_is_another_run(own, monkeypatch):
    data = runs.load_data(own)
    before = runs.identity(own, data)
    told = Settings.__dataclass_fields__["weight_decay"]
    monkeypatch.setattr(told, "default", 0.1)
    assert runs.identity(replace(own, weight_decay=0.1), data) != before
    assert runs.identity(own, data) == before


def test_a_file_that_was_edited_is_read_again_and_is_another_run(own):
    run = runs.train(own)
    text = Path("file.csv").read_text()
    Path("file.csv").write_text(text.replace("u7,film 4,", "u7,film 5,"))  # as long as before
    again = runs.train(own)
    assert again.folder != run.folder
    with pytest.raises(InputError, match="file.csv is not what .* was trained on"):
        _ = runs.load(run.folder).data
    assert len(runs.load(run.folder).recommend(["film 1"])) == 10, "which needs no data"


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "gbce", "sampler": "popularity", "k": 3},
        {"loss": "sampled_softmax"},
        {"loss": "softmax", "model": "bert4rec", "max_length": 5, "tied": True},
        {"loss": "bce", "theory_start": True, "sampler": "history-excluded", "max_length": 4},
        {"loss": "gbce", "logq": True, "tied": True, "theory_start": True},
        {"model": "popularity"},
    ],
)
def test_a_moved_and_renamed_run_serves_without_its_data(own, tmp_path, monkeypatch, change):
    run = runs.train(replace(own, **change))
    history = ["film 3", "film 7", "film 11"]
    expected, metrics = run.recommend(history, n=20), run.metrics
    point = run.fixed_point if change.get("loss") in ("gbce", "bce") else None
    shutil.move(run.folder, tmp_path / "my best one")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "file.csv").unlink()
    monkeypatch.chdir("/")
    monkeypatch.setattr(experiment, "_loaded", {})
    loaded = runs.load(tmp_path / "my best one")
    pd.testing.assert_frame_equal(loaded.recommend(history, n=20), expected)
    assert len(expected) == 17, "seen items are left out, as the protocol says"
    assert loaded.metrics == metrics and loaded.protocol["dataset"] == "file.csv"
    if point:
        for what in ("alpha", "pull", "collisions"):
            np.testing.assert_array_equal(getattr(loaded.fixed_point, what), getattr(point, what))
    with pytest.raises(InputError, match=r"There is no file .*file\.csv"):
        _ = loaded.data


def test_a_matrix_factorisation_is_loaded_without_its_data(own):
    run = runs.train(replace(own, model="mf", loss="bpr", k=1))
    weights = run.model.state_dict()
    Path("file.csv").unlink()
    again = runs.load(run.folder).model.state_dict()
    assert all((weights[name] == again[name]).all() for name in weights)


def test_a_saved_run_finds_its_data_from_any_folder(own, tmp_path, monkeypatch):
    run = runs.train(own)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = runs.load("../runs/" + run.folder.name)
    assert ranking.evaluate(loaded.model, loaded.data.split)["ndcg@10"] == run.metrics["ndcg@10"]


def test_unknown_items_of_a_history_are_skipped_with_a_word(small_world):
    run = runs.train(replace(small_world, epochs=1))
    with pytest.warns(UserWarning, match=r"2 of 4 items .* skipped, as .* has no '900', 'Heat'"):
        found = run.recommend([3, 900, 17, "Heat"])
    pd.testing.assert_frame_equal(found, run.recommend([3, 17]))


@pytest.mark.parametrize(
    "history",
    ["55", 55, 55.0, np.int64(55), np.array(55), ["55"], (55.0,), np.array(["55"]), iter([55]),
     pd.Series([55.0]), pd.Index([55]), {"a": 55}.values(), np.array([55], object)],
)  # fmt: skip
def test_one_item_in_any_form_is_a_history_of_one(small_world, history):
    run = runs.train(replace(small_world, epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(run.recommend(history), run.recommend([55]))


def test_damaged_metrics_and_ranks_are_made_again_and_the_rest_is_refused(small_world):
    run = runs.train(small_world)
    before = {name: (run.folder / name).read_bytes() for name in (*runs.FILES, files.MANIFEST)}
    for broken in (b"", before["metrics.json"][:50], b"[]"):
        (run.folder / "metrics.json").write_bytes(broken)
        (run.folder / "ranks.npy").unlink()
        again = runs.train(small_world, on_epoch=lambda history: pytest.fail("trained again"))
        assert again.metrics == run.metrics
        assert before == {name: (run.folder / name).read_bytes() for name in before}
    for name in set(runs.FILES) - runs.MADE_AGAIN:
        changed = bytearray(before[name])
        changed[len(changed) // 2] ^= 1
        (run.folder / name).write_bytes(changed)
        for call in (lambda: runs.load(run.folder), lambda: runs.train(small_world)):
            with pytest.raises(InputError, match=f"{name} is damaged or was edited: delete"):
                call()
        (run.folder / name).write_bytes(before[name])
    (run.folder / files.MANIFEST).unlink()
    with pytest.raises(InputError, match=r"manifest\.json is gone"):
        runs.train(small_world)


def test_another_runs_folder_is_not_taken_for_this_one(small_world):
    one, other = runs.train(small_world), runs.train(replace(small_world, seed=2))
    shutil.rmtree(one.folder)
    shutil.copytree(other.folder, one.folder)
    with pytest.raises(InputError, match="holds another run"):
        runs.train(small_world)
    assert runs.load(one.folder).settings.seed == 2


def test_a_run_of_format_3_is_loaded_under_any_name(small_world, tmp_path):
    """As the version before left it: model.pt, no manifest, settings of its time."""
    import torch

    run = runs.train(small_world)
    old = tmp_path / "renamed"
    shutil.copytree(run.folder, old)
    for name in (files.MANIFEST, "model.safetensors", "items.json"):
        (old / name).unlink()
    weights = run.model.state_dict()
    torch.save({"identity": "sasrec-bce-123456789abc", "model": weights}, old / "model.pt")
    (old / "environment.json").write_text(json.dumps(run.environment | {"format": "3"}))
    settings = json.loads((old / "settings.json").read_text())
    del settings["logq"]  # a setting of later
    (old / "settings.json").write_text(json.dumps(settings))
    loaded = runs.load(old)
    assert loaded.settings == small_world and loaded.metrics == run.metrics
    pd.testing.assert_frame_equal(
        loaded.recommend([3, 4]), run.recommend([3, 4]), check_dtype=False
    )
    (old / "settings.json").write_text(json.dumps(settings | {"kk": 1}))
    with pytest.raises(InputError, match="another version"):
        runs.load(old)
    (old / "settings.json").write_text(json.dumps(settings))
    damaged = bytearray((old / "model.pt").read_bytes())
    place = bytes(damaged).index(next(iter(weights.values())).numpy().tobytes()[:64])
    damaged[place] ^= 1
    (old / "model.pt").write_bytes(damaged)
    with pytest.raises(InputError, match="no whole weights"):
        _ = runs.load(old).model


def _fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "place",
    [
        lambda path, victim: path.symlink_to(victim),
        lambda path, victim: path.symlink_to(victim.parent / "nowhere"),
        lambda path, victim: os.link(victim, path),
        lambda path, victim: path.mkdir(),
        lambda path, victim: _fifo(path),
    ],
    ids=["symlink", "dangling", "hardlink", "folder", "fifo"],
)
def test_a_lock_that_is_no_file_of_its_own_is_refused_and_untouched(tmp_path, place):
    folder, victim = tmp_path / "run", tmp_path / "thesis.txt"
    folder.mkdir()
    victim.write_text("years of work")
    place(folder / "lock", victim)
    with pytest.raises(InputError, match="is a link, a folder or a device"), files.locked(folder):
        pass
    assert victim.read_text() == "years of work"


def test_a_lock_of_the_compiled_loss_that_is_a_link_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(OSError, match="symbolic links"), native._alone(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_user_gives_to_new_ones(tmp_path, umask, mode):
    """A group that shares a folder can go on in it; what is private stays so."""
    before = os.umask(umask)
    try:
        with files.locked(tmp_path / "run"):
            files.write(tmp_path / "run" / "a.json", b"{}")
            files.write_checkpoint(tmp_path / "run" / "a.pt", {"identity": "x"})
            found = {
                path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()
            }
        assert found == {"lock": mode, "a.json": mode, "a.pt": mode}
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(before)


def test_a_folder_made_for_a_lock_alone_goes_again(tmp_path):
    with pytest.raises(KeyError), files.locked(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with files.locked(tmp_path / "mine"):
        pass
    assert not list((tmp_path / "mine").iterdir())


def test_a_partial_file_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "a.json.partial").symlink_to(tmp_path / "thesis.txt")
    files.write(tmp_path / "a.json", b"{}")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "a.json").read_bytes() == b"{}" and not (tmp_path / "a.json").is_symlink()


def test_a_run_folder_that_is_a_file_or_a_dangling_link_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="cannot be written"), files.locked(tmp_path / name):
            pass


def test_a_fifo_in_place_of_a_file_is_not_waited_for(small_world):
    run = runs.train(replace(small_world, epochs=1))
    (run.folder / "settings.json").unlink()
    os.mkfifo(run.folder / "settings.json")
    with pytest.raises(InputError, match="no plain file"):
        runs.load(run.folder)


def test_a_relative_folder_of_runs_is_of_where_the_process_started(tmp_path):
    code = (
        "import os; from gsas_lab import files; os.chdir('/');"
        "print(files.runs_folder()); print(os.environ.get('GSAS_LAB_RUNS'))"
    )
    env = {**os.environ, "GSAS_LAB_RUNS": "mine/runs", "PYTHONPATH": str(files.ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert said.stdout.split()[0] == str(tmp_path / "mine/runs"), said.stderr


def test_the_command_line_hands_an_absolute_folder_of_runs_to_its_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("GSAS_LAB_RUNS", "~/runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.main(["runs"]) == 0
    assert os.environ["GSAS_LAB_RUNS"] == str(tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "a\0b", "~nobody-of-this-name/x"])
def test_a_path_that_no_file_can_have_is_one_sentence(text, monkeypatch):
    with pytest.raises(InputError, match="path = "):
        files.chosen(text)
    with pytest.raises(InputError, match="folder = "):
        runs.load(text)


def test_an_empty_folder_of_runs_is_the_usual_one(monkeypatch):
    monkeypatch.setenv("GSAS_LAB_RUNS", "")
    assert files.runs_folder() == files.ROOT / "outputs" / "runs"


@pytest.mark.parametrize("given, value", [("none", None), ("True", True), ("false", False)])
def test_exclude_seen_has_three_values_on_the_command_line(monkeypatch, given, value):
    told = []
    monkeypatch.setattr(runs, "train", lambda s: told.append(s) or (_ for _ in ()).throw(OSError()))
    assert command_line.main(["train", "--exclude-seen", given]) == 2
    assert told[0].exclude_seen is value
    assert told[0].epochs < 100, "quick, if nothing is said"


def test_exclude_seen_has_three_values_in_grids_and_parameters(tmp_path):
    (tmp_path / "a.toml").write_text(
        'recipe = "gsasrec"\n[grid]\nexclude_seen = ["none", true, false]'
    )
    found = [each.exclude_seen for each in sweeps.read(tmp_path / "a.toml").values()]
    assert found == [None, True, False]
    assert Settings(exclude_seen="None").exclude_seen is None
    with pytest.raises(InputError, match="exclude_seen = 'maybe'"):
        Settings(exclude_seen="maybe")


@pytest.mark.parametrize(
    "words", [["train", "--k", "many"], ["bogus"], [], ["train", "--split", "x"], ["report", ""]]
)
def test_a_word_that_the_command_line_does_not_know_is_one_sentence(words, capsys):
    assert command_line.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_runs_are_listed_and_damaged_ones_with_a_word(small_world, capsys):
    one, other = runs.train(small_world), runs.train(replace(small_world, seed=2, epochs=1))
    broken = runs.train(replace(small_world, seed=3, epochs=1))
    (broken.folder / "metrics.json").write_text("")
    gone = runs.train(replace(small_world, seed=4, epochs=1))
    (gone.folder / "model.safetensors").unlink()
    (one.folder.parent / "half").mkdir()
    (one.folder.parent / "half" / "settings.json").write_text("{}")
    (one.folder.parent / "holiday photos").mkdir()
    listed = shelf.table().set_index("run")
    assert len(listed) == 5
    row = listed.loc[one.folder.name]
    assert (row["system"], row["data"], row["state"]) == (one.settings.name, "known-truth", "done")
    assert row["ndcg@10"] == one.metrics["ndcg@10"] and row["date"] == one.environment["date"]
    assert listed.loc[broken.folder.name, "state"].startswith("damaged: ")
    assert "model.safetensors is missing" in listed.loc[gone.folder.name, "state"]
    assert listed.loc["half", "state"] == "not finished"
    assert command_line.main(["runs"]) == 0
    assert other.folder.name in capsys.readouterr().out


def test_two_runs_are_told_apart(small_world, capsys):
    one, other = runs.train(small_world), runs.train(replace(small_world, k=9, loss="gbce"))
    found = shelf.compare(one, other)
    assert set(found.settings.index) == {"k", "loss"}
    row = found.test.iloc[0]
    assert row["difference"] == pytest.approx(other.metrics["ndcg@10"] - one.metrics["ndcg@10"])
    words = ["compare", one.folder.name[:-2], str(other.folder)]
    assert command_line.main(words) == 0
    assert "paired t-test over users: p = " in capsys.readouterr().out
    assert command_line.main(["compare", "sasrec-", one.folder.name]) == 2
    assert "2 runs in" in capsys.readouterr().err


def test_runs_of_other_data_are_not_tested(own):
    one = runs.train(own)
    other = runs.train(replace(own, validation_users=12))
    found = shelf.compare(one, other)
    assert found.test is None and "validation_users differ" in str(found)
    itself = shelf.compare(one, one)
    assert len(itself.settings) == 0 and itself.test.iloc[0]["p"] == 1


def test_an_evaluation_that_takes_long_shows_the_time_left(small_world, monkeypatch, capsys):
    run = runs.train(replace(small_world, epochs=1))
    capsys.readouterr()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    ranking.ranks(run.model, run.data.split.test, True)
    assert capsys.readouterr().err == "", "it took no time"
    monkeypatch.setattr(ranking, "_PATIENCE", 0.0)
    ranking.ranks(run.model, run.data.split.test, True)
    assert "ranking the whole catalogue" in capsys.readouterr().err
    monkeypatch.setenv("TQDM_DISABLE", "1")
    ranking.examine(run.model, run.data.split.test, True)
    assert capsys.readouterr().err == ""


def test_a_file_name_that_is_not_utf_8_is_recorded(own):
    name = os.fsdecode(b"caf\xe9.csv")
    shutil.copy("file.csv", name)
    run = runs.train(replace(own, dataset=name))
    assert runs.load(run.folder).settings.dataset == str(Path(name).absolute())
