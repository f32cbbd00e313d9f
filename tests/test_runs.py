"""Settings are the record; a run is found again; the command line speaks in one line."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
import torch

from gsas_lab import __main__ as command_line
from gsas_lab import files, metrics, ranking, recipes, runs, splits
from gsas_lab.errors import InputError
from gsas_lab.runs import Settings
from gsas_lab.settings import OF_DATA, parameters

OTHER = {
    "dataset": "ml-1m", "min_user": 2, "min_item": 2, "user": "other", "item": "thing", "time": "step", "split": "port", "split_at": "0.5", "validation_users": 20,
    "exclude_seen": True, "model": "bert4rec", "block": "modern", "d": 8, "blocks": 2, "heads": 2, "max_length": 6,
    "dropout": 0.1, "tied": True, "loss": "gbce", "k": 2, "t": 0.5, "sampler": "whole-catalogue",
    "power": 0.5, "logq": True, "masked": 0.5, "theory_start": True, "windows": "all", "epochs": 2, "patience": 1, "batch_size": 32,
    "lr": 0.01, "weight_decay": 0.5, "warmup": 0.5, "cooldown": 0.5, "precision": "bfloat16",
    "table_optimizer": "adagrad",
    "seed": 2, "device": "cpu",
}  # fmt: skip
DATA_FIELDS = set(OF_DATA)


def test_every_setting_has_another_value_here():
    assert set(OTHER) == {item.name for item in fields(Settings)}


@pytest.mark.parametrize("name", sorted(set(OTHER) - DATA_FIELDS - {"device", "patience"}))
def test_every_setting_changes_the_result(small_world, name):
    base = replace(small_world, loss="gbce", t=0.2, max_length=8, epochs=3)
    if name == "loss":
        base = replace(base, loss="bce")
    if name == "power":
        base = replace(base, sampler="popularity")
    if name == "masked":
        base = replace(base, model="bert4rec")
    one, other = runs.train(base), runs.train(replace(base, **{name: OTHER[name]}))
    assert one.folder != other.folder
    assert one.history["loss"].tolist() != other.history["loss"].tolist()


@pytest.mark.parametrize("name", sorted(DATA_FIELDS - {"dataset"}))
def test_every_setting_of_the_data_changes_the_data(name, tmp_path):
    rows = [(user, item % 9 + 1 + user) for user in range(1, 41) for item in range(3 + user % 9)]
    rows += [(77, 1), (77, 9000), (1, 8000)]  # a short user and rare items
    lines = [f"{user},{item},{user + 1},{item // 2},{-at}" for at, (user, item) in enumerate(rows)]
    (tmp_path / "toy.csv").write_text("\n".join(["user,item,other,thing,step", *lines]))
    base = Settings(dataset=str(tmp_path / "toy.csv"), validation_users=10)
    if name == "split_at":
        base = replace(base, split="time", time="step")
    value = {"min_user": 5, "exclude_seen": False}.get(name, OTHER[name])
    one, other = runs.load_data(base), runs.load_data(replace(base, **{name: value}))
    assert one.split.protocol != other.split.protocol


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("profile", ["small", "paper"])
def test_every_system_of_the_paper_trains(small_world, name, profile):
    system = recipes.PROFILES[profile](recipes.RECIPES[name](), "known-truth")
    budget = {"d": 16, "max_length": 12, "epochs": 2, "patience": 2, "validation_users": 50}
    run = runs.train(replace(system, k=min(system.k, 40), **budget))
    assert np.isfinite(run.history["loss"].astype(float)).all()
    assert len(run.history) == (0 if name == "popularity" else 2)
    assert len(run.ranks) == 300 and (run.ranks >= 1).all() and (run.ranks <= 60).all()
    assert runs.load(run.folder).settings == run.settings


def test_a_run_folder_holds_its_evidence_and_is_found_again(small_world):
    run = runs.train(small_world)
    names = {file.name for file in run.folder.iterdir()}
    assert names == {
        "settings.json", "protocol.json", "environment.json", "metrics.json", "history.csv",
        "items.json", "model.safetensors", "ranks.npy", "manifest.json",
    }  # fmt: skip
    assert names == {*runs.FILES, files.MANIFEST} and not run.damaged()
    assert Settings(**json.loads((run.folder / "settings.json").read_text())) == small_world
    environment = json.loads((run.folder / "environment.json").read_text())
    assert {"commit", "date", "device", "torch", "python"} <= set(environment)
    again = runs.train(small_world, on_epoch=lambda history: pytest.fail("trained again"))
    assert again.folder == run.folder and again.metrics == run.metrics
    np.testing.assert_array_equal(run.ranks, run.outcome.ranks)
    assert run.ranks.dtype == np.int32


def test_a_saved_run_is_loaded_from_its_folder(small_world):
    run = runs.train(small_world)
    loaded = runs.load(str(run.folder))
    assert loaded == run and loaded.metrics == run.metrics


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: shutil.rmtree(folder), "There is no run folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "no finished run"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "it is damaged"),
        (lambda folder: edit(folder / "manifest.json", format=5), "another version"),
        (lambda folder: edit(folder / "manifest.json", identity="x"), "not as it was written"),
        (
            lambda folder: edit(folder / "settings.json", k=5),
            "settings.json is damaged or was edit",
        ),
        (lambda folder: (folder / "environment.json").unlink(), "environment.json cannot be read"),
        (lambda folder: (folder / "metrics.json").write_text(""), "train with the same settings"),
    ],
)
def test_what_is_no_run_of_this_version_is_not_loaded(small_world, damage, message):
    folder = runs.train(replace(small_world, epochs=1)).folder
    damage(folder)
    with pytest.raises(InputError, match=message):
        runs.load(folder)


@pytest.mark.parametrize(
    "name",
    [*runs.FILES, files.MANIFEST],
)
def test_a_full_disk_is_one_sentence_and_costs_no_training(small_world, monkeypatch, name):
    finished = runs.train(replace(small_world, epochs=1))
    before = {file: file.read_bytes() for file in finished.folder.iterdir()}
    real = os.replace

    def replace_file(partial, path):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(partial, path)

    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace_file)
        with pytest.raises(InputError, match=f"{name} could not be written.*free some disk space"):
            runs.train(small_world, on_epoch=trained.append)
    assert not list(files.runs_folder().glob("*/*.partial"))
    assert before == {file: file.read_bytes() for file in finished.folder.iterdir()}
    run = runs.train(small_world, on_epoch=trained.append)
    assert len(trained) == 3 == len(run.history), "no epoch is trained twice"


def test_one_process_trains_a_run_and_another_is_sent_away(small_world):
    run = runs.train(small_world)
    shutil.rmtree(run.folder)
    with files.locked(run.folder), pytest.raises(InputError, match=f"by process {os.getpid()} on "):
        runs.train(small_world)
    run.folder.mkdir(exist_ok=True)  # an empty one goes with its lock
    (run.folder / "lock").write_text("1234 on a machine that lost its power")
    assert runs.train(small_world).folder == run.folder
    assert not (run.folder / "lock").exists()


def test_notebooks_that_run_side_by_side_wait_for_one_another(small_world, monkeypatch):
    """One of two trains, the other finds what it left."""
    monkeypatch.setenv("GSAS_LAB_HEADLESS", "1")
    trained, both = [], Barrier(2)

    def begin() -> runs.Run:
        both.wait()
        return runs.train(small_world, on_epoch=trained.append)

    with ThreadPoolExecutor(2) as pool:
        one, other = (future.result() for future in [pool.submit(begin), pool.submit(begin)])
    assert one.folder == other.folder and len(trained) == small_world.epochs


def test_a_whole_number_is_the_same_run_as_its_float(small_world):
    one, other = (replace(small_world, loss="gbce", epochs=1, t=t) for t in (1, 1.0))
    assert runs.train(one).folder == runs.train(other).folder


def test_the_recorded_metrics_are_those_of_the_kept_weights(small_world):
    run = runs.train(small_world)
    split = run.data.split
    assert ranking.evaluate(run.model, split)["ndcg@10"] == run.metrics["ndcg@10"]
    scores = run.scores(split.test)  # a literal ranking, one user at a time
    ranks = [
        1 + (row > row[target - 1]).sum() + (row[: target - 1] == row[target - 1]).sum()
        for row, target in zip(scores, split.test.targets, strict=True)
    ]
    np.testing.assert_array_equal(run.outcome.ranks, ranks)
    assert metrics.ndcg(ranks, 10).mean() == pytest.approx(run.metrics["ndcg@10"])
    prob = run.probabilities(scores)
    np.testing.assert_allclose(run.outcome.sums, prob.sum(1), rtol=1e-5)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5] + 1
    np.testing.assert_array_equal(run.outcome.items[:, :5], best)


def test_the_seen_filter_takes_out_the_history_and_nothing_else(small_world):
    run = runs.train(small_world)
    held = run.data.split.test
    filtered = ranking.examine(run.model, held, exclude_seen=True, top=60)
    scores = run.scores(held)
    for row in range(50):
        target, seen = held.targets[row], set(held.histories[row])
        rivals = [i for i in range(1, 61) if i == target or i not in seen]
        ahead = sum(scores[row, i - 1] > scores[row, target - 1] for i in rivals)
        assert filtered.ranks[row] == 1 + ahead
        assert set(filtered.items[row][: len(rivals)]) == set(rivals)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k = 0 lies outside"),
        ({"t": 1.5}, "t = 1.5 lies outside"),
        ({"seed": -1}, "seed = -1 lies outside"),
        ({"seed": 2**63}, "seed = 9223372036854775808 lies outside"),
        ({"power": float("inf")}, "power = inf lies outside"),
        ({"lr": float("inf")}, "lr = inf lies outside"),
        ({"lr": 0.0}, "lr = 0 trains nothing"),
        ({"weight_decay": float("nan")}, "weight_decay = nan lies outside"),
        ({"t": -0.1}, "t = -0.1 lies outside"),
        ({"loss": "hinge"}, "choose one of bce"),
        ({"k": "many"}, "k = 'many' is not of type int"),
        ({"tied": 1}, "tied = 1 is not of type bool"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"device": "tpu"}, "choose one of auto"),
        ({"loss": "softmax", "logq": True}, "has nothing to correct"),
        ({"loss": "bce", "logq": "magic"}, "choose none, usual or corrected"),
        ({"loss": "expected_gbce", "sampler": "in-batch"}, "mean over uniform draws"),
        ({"model": "bert4rec", "max_length": 1}, "no place for the mask"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Settings(**change)


def test_too_many_negatives_leave_no_folder_behind(small_world, tmp_path):
    with pytest.raises(InputError, match="k"):
        runs.train(replace(small_world, k=60))
    assert not (tmp_path / "runs").exists()


def test_a_catalogue_of_a_million_is_scored_a_few_users_at_a_time(small_world, monkeypatch):
    run = runs.train(small_world)
    test = run.data.split.test
    whole, at_once = ranking.ranks(run.model, test, True), []
    monkeypatch.setattr(ranking, "_SCORES", 7 * (run.model.n_items + 1))
    for _, rows in ranking.score_in_batches(run.model, test):
        at_once.append(len(rows))
    assert max(at_once) == 7 and sum(at_once) == len(test.users)
    np.testing.assert_array_equal(ranking.ranks(run.model, test, True), whole)


def test_ranks_alone_and_scores_stand_in_the_holdouts_order(small_world):
    run = runs.train(small_world)
    data, cut = run.data, np.array([11, 3, 7, 1])  # histories of different lengths, mixed
    histories = [data.split.test.histories[user][-length:] for user, length in enumerate(cut)]
    holdout = splits.Holdout(
        np.arange(4),
        splits.Histories(np.concatenate(histories), np.cumsum([0, *cut])),
        data.split.test.targets[:4],
    )
    for exclude in (True, False):
        whole = ranking.examine(run.model, holdout, exclude).ranks
        np.testing.assert_array_equal(ranking.ranks(run.model, holdout, exclude), whole)
    together = run.scores(holdout)
    for user in range(4):
        np.testing.assert_allclose(run.scores(holdout.subset([user]))[0], together[user], atol=1e-5)
        alone = ranking.ranks(run.model, holdout.subset([user]), False)
        assert alone == ranking.ranks(run.model, holdout, False)[user]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"loss": "bce", "k": 1}, (1 / 59, 1.0, False)),
        ({"loss": "gbce", "k": 4, "t": 1.0}, (4 / 59, 4 / 59, False)),
        ({"loss": "expected_gbce", "k": 4, "t": 1.0}, (4 / 59, 4 / 59, False)),
        ({"loss": "gbce", "k": 4, "t": 1.0, "sampler": "whole-catalogue"}, (4 / 60, 4 / 59, True)),
        ({"loss": "softmax"}, (1.0, 1.0, False)),
        ({"loss": "gbce", "k": 4, "sampler": "shared-batch"}, (4 / 60, 1.0, True)),
        ({"loss": "bce", "k": 4, "sampler": "popularity", "logq": True}, (1.0, 1.0, True)),
        ({"loss": "bce", "k": 4, "logq": True}, (1.0, 1.0, False)),
        (
            {"loss": "gbce", "t": 0.5, "k": 4, "sampler": "popularity", "logq": "corrected"},
            (1.0, 1 - 0.5 * (1 - 4 / 59), False),
        ),
        (
            {"loss": "sampled_softmax", "k": 4, "sampler": "shared-sequence", "logq": "corrected"},
            (1.0, 1.0, False),
        ),
    ],
)
def test_a_run_knows_its_fixed_point(small_world, change, expected):
    run = runs.train(replace(small_world, epochs=1, **change))
    point = run.fixed_point
    assert (point.alpha, point.pull, point.collisions) == pytest.approx(expected)
    assert np.isfinite(run.history["loss"]).all()


@pytest.mark.parametrize("loss", ["bce", "gbce", "sampled_softmax", "softmax"])
def test_a_recommendation_is_the_head_of_the_scores(small_world, loss):
    run = runs.train(replace(small_world, loss=loss, t=0.5, epochs=1))
    data, test = run.data.interactions, run.data.split.test.first(5)
    for row, scores in enumerate(run.scores(test)):
        found = run.recommend(list(test.histories[row]), n=7, exclude_seen=False)
        best = np.argsort(-scores, kind="stable")[:7]
        assert found["rank"].tolist() == list(range(1, 8))
        assert found["item"].tolist() == (best + 1).tolist()  # the world's ids are 1…n_items
        assert found["title"].tolist() == [data.title(item) for item in best + 1]
        np.testing.assert_allclose(found["raw"], run.probabilities(scores[None])[0, best], 1e-5)
        prior = torch.from_numpy(scores).softmax(0).numpy()
        if run.theorem:
            prior = run.fixed_point.prior(scores)
        np.testing.assert_allclose(found["probability"], prior[best], rtol=1e-5)


def test_a_recommendation_takes_titles_and_leaves_out_what_was_seen(small_world):
    run = runs.train(replace(small_world, epochs=1))
    data, history = run.data.interactions, [3, 17, 41]
    titles = [data.title(item) for item in history]
    every = run.recommend(titles, n=100)  # as the world's protocol: seen items stay
    pd.testing.assert_frame_equal(every, run.recommend(np.array(history), n=100))
    assert sorted(every["item"]) == list(range(1, 61))
    unseen = run.recommend([3, titles[1], "41"], n=100, exclude_seen=True)
    kept = every[~every["item"].isin(history)]
    assert unseen["item"].tolist() == kept["item"].tolist() and len(unseen) == 57
    assert unseen["probability"].tolist() == kept["probability"].tolist()


def test_a_probability_is_never_above_one_even_with_collisions(small_world, monkeypatch):
    run = runs.train(replace(small_world, epochs=1, sampler="whole-catalogue"))
    monkeypatch.setattr(run.model, "score", lambda items: torch.full((1, 61), 20.0))
    assert (run.recommend([1])["probability"] == 1).all()


@pytest.mark.parametrize(
    "history, n, message",
    [
        ([], 10, "A history of 0 items"),
        ([1], 0, "n = 0 recommendations"),
        ([1], True, "n = True recommendations"),
        ([1], "3", "n = '3' recommendations"),
        ([61], 10, "has no item '61': give an id of its file, such as 1, 2, 3"),
        ("55 12", 10, "has no item '55 12'"),
        ({1, 2}, 10, "oldest first, and no set"),
        ({1: 2}, 10, "oldest first, and no dict"),
        (b"55", 10, "oldest first, and no bytes"),
        (pd.DataFrame({"item": [1]}), 10, "oldest first, and no DataFrame"),
        ([[1, 2]], 10, r"Item 1 of the history is \[1, 2\]"),
        (np.array([[1, 2]]), 10, "Item 1 of the history is array"),
        ([1, None], 10, "Item 2 of the history is None"),
        ([1, b"2"], 10, "Item 2 of the history is b'2'"),
        ([True], 10, "Item 1 of the history is True"),
        (pd.Series([1, np.nan]), 10, "Item 2 of the history is missing"),
        (None, 10, "Item 1 of the history is None"),
        ([0], 10, "has no item '0'"),
        (["Heat (1995)"], 10, r"has no item 'Heat \(1995\)'"),
    ],
)
def test_a_history_that_cannot_be_read_is_refused(small_world, history, n, message):
    run = runs.train(replace(small_world, epochs=1))
    with pytest.raises(InputError, match=message):
        run.recommend(history, n=n)


def test_unknown_notebook_parameters_are_an_error():
    assert parameters({"k": 7, "_i": "x", "user": 3}, ("user",)) == {"k": 7}
    with pytest.raises(InputError, match="Unknown parameter 'negatives'"):
        parameters({"negatives": 7})


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--dataset", "nowhere"], "known-truth"),
        (["train", "--dataset", "known-truth", "--k", "1000"], "choose k from 1 to 999"),
        (["train", "--t", "2"], "t = 2.0 lies outside"),
        (["describe", "nowhere.txt"], "nowhere.txt"),
        (["train", "--device", "cuda"], "this machine has none"),
        (["notebooks", "--dataset", "known-truth", "-p", "negatives=3"], "Unknown parameter"),
        (["notebooks", "-p", "k"], "name=value"),
    ],
)
def test_the_command_line_says_one_sentence_and_exits_with_2(
    words, message, capsys, monkeypatch, tmp_path
):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path))
    assert command_line.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line_explains_every_setting(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["train", "--help"])
    text = capsys.readouterr().out
    for item in fields(Settings):
        assert f"--{item.name.replace('_', '-')}" in text and item.metadata["help"][:20] in text


def test_the_command_line_is_the_settings(small_world, monkeypatch, capsys):
    seen = {}
    real = runs.train
    monkeypatch.setattr(
        runs, "train", lambda settings: (seen.update(asdict(settings)), real(small_world))[1]
    )
    words = ["train", "--recipe", "gsasrec", "--k", "8", "--tied", "true", "--lr", "0.5"]
    assert command_line.main(words) == 0
    assert (seen["k"], seen["t"], seen["tied"], seen["lr"]) == (8, 0.75, True, 0.5)
    assert "ndcg@10" in capsys.readouterr().out


def test_the_three_words_of_logq_keep_the_names_of_older_runs():
    old, new = Settings(logq=False), Settings(logq="none")
    assert old == new and new.logq is False and Settings(logq="usual").logq is True
    assert Settings(logq="true").logq is True and Settings(logq="Corrected").logq == "corrected"
    assert Settings(loss="gbce", k=4, logq="corrected").name.endswith("corrected logQ")
