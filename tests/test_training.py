"""The loop: it resumes bit for bit, stops when it must, and never leaves half a file."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from gsas_lab import files, losses, recipes, runs
from gsas_lab.errors import InputError
from gsas_lab.experiment import assemble
from gsas_lab.losses import LOSSES
from gsas_lab.settings import Settings
from gsas_lab.training import Step, rate


def weights(run):
    return run.model.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("loss", LOSSES)
def test_training_lowers_the_loss_and_beats_chance(small_world, loss, model):
    epochs = 8 if model == "sasrec" else 16  # which is asked about a fifth as much
    run = runs.train(
        replace(small_world, model=model, loss=loss, epochs=epochs, lr=0.01, dropout=0.0)
    )
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert run.metrics["recall@10"] > 1.5 * 10 / 60


def test_a_stopped_training_goes_on_and_ends_with_the_same_weights(small_world, stopped):
    settings = replace(small_world, loss="gbce", t=0.5, dropout=0.3, windows="all", cooldown=0.5)
    whole = weights(runs.train(settings))
    stopped(settings)
    seen = []
    resumed = runs.train(settings, on_epoch=lambda history: seen.append(len(history)))
    assert seen == [3], "only the missing epoch is trained"
    assert same(whole, weights(resumed))


def test_a_killed_process_goes_on_and_ends_with_the_same_weights(tmp_path):
    """SIGKILL, at whatever point it strikes."""
    code = (
        "from gsas_lab import experiment, runs, splits; from gsas_lab.interactions import from_world;"
        "from gsas_lab.worlds import World; from gsas_lab.settings import Settings;"
        "d = from_world(World(n_users=400, length=12, n_items=60, n_genres=5));"
        "s = splits.leave_one_out(d, 50); experiment.load_data = lambda _: experiment.Data(d, s);"
        "r = runs.train(Settings(device='cpu', d=16, blocks=1, max_length=12, epochs=12, k=4, "
        "validation_users=50)); print(r.folder)"
    )

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "GSAS_LAB_RUNS": str(tmp_path / folder)},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    first = start("killed")
    while not list((tmp_path / "killed").glob("*/checkpoint.pt")) and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    killed = start("killed").communicate()[0].strip()
    whole = start("whole").communicate()[0].strip()
    saved = [load_file(f"{folder}/model.safetensors") for folder in (killed, whole)]
    assert same(*saved)


def test_another_seed_gives_other_weights(small_world):
    one, other = runs.train(small_world), runs.train(replace(small_world, seed=2))
    assert not same(weights(one), weights(other))


def test_the_best_weights_are_kept_not_the_last(small_world, monkeypatch):
    scripted = iter([0.1, 0.9, 0.2, 0.3])
    kept = []
    monkeypatch.setattr(
        runs.metrics,
        "ndcg",
        lambda ranks, cutoff: (
            torch.tensor([next(scripted)]).numpy() if len(ranks) == 50 else ranks * 0.0
        ),
    )
    original = files.write_checkpoint
    monkeypatch.setattr(
        files,
        "write_checkpoint",
        lambda p, c: (
            p.name == "checkpoint.pt"
            and kept.append({k: v.clone() for k, v in c["model"].items()}),
            original(p, c),
        ),
    )
    run = runs.train(replace(small_world, epochs=4))
    assert run.metrics["best epoch"] == 2
    assert same(kept[1], weights(run)) and not same(kept[3], weights(run))
    assert {file.name for file in run.folder.iterdir()} == {*runs.FILES, files.MANIFEST}


def test_weights_that_were_the_best_and_are_gone_stop_a_training_that_goes_on(small_world, stopped):
    stopped(small_world)
    (best,) = files.runs_folder().glob("*/best-*.pt")
    whole = best.read_bytes()
    best.unlink()
    with pytest.raises(InputError, match="best-.*pt is gone: delete .*checkpoint.pt"):
        runs.train(small_world)
    best.write_bytes(whole)
    assert len(runs.train(small_world).history) == 3


def test_training_stops_when_validation_no_longer_improves(small_world, monkeypatch):
    monkeypatch.setattr(runs.metrics, "ndcg", lambda ranks, cutoff: ranks * 0.0 + 0.5)
    run = runs.train(replace(small_world, epochs=50, patience=3))
    assert run.metrics["epochs"] == 4 and run.metrics["best epoch"] == 1


def test_a_loss_that_is_not_finite_stops_with_its_place(small_world, monkeypatch):
    monkeypatch.setattr(
        losses.fused, "gbce", lambda hidden, *_, **more: hidden.sum() * float("nan")
    )
    with pytest.raises(InputError, match=r"loss became nan in epoch 1, step 1 of .*lr = 0.001"):
        runs.train(small_world)


def test_a_foreign_or_broken_checkpoint_is_refused(tmp_path):
    file, name = tmp_path / "checkpoint.pt", "bce-123456789abc"
    files.write_checkpoint(file, {"identity": name, "model": {"w": torch.arange(9.0)}})
    assert files.read_checkpoint(file, name)["model"]["w"].tolist() == list(range(9))
    with pytest.raises(InputError, match="belongs to another model"):
        files.read_checkpoint(file, "bce-000000000000")
    whole = file.read_bytes()
    flipped = [bytearray(whole) for _ in range(40)]
    for number, broken in enumerate(flipped):
        broken[number * len(whole) // 40] ^= 1 << number % 8
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole + b"x", *flipped):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="not a whole checkpoint"):
            files.read_checkpoint(file, name)
    with pytest.raises(InputError, match="does not exist"):
        files.read_checkpoint(tmp_path / "none.pt", "x")


def test_nothing_in_a_checkpoint_can_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    files.write_checkpoint(tmp_path / "evil.pt", {"identity": "x", "model": Evil()})
    with pytest.raises(InputError, match="not a whole checkpoint"):
        files.read_checkpoint(tmp_path / "evil.pt", "x")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    files.write_checkpoint(file, {"identity": "x", "epoch": 1})

    def full(content, handle):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.torch, "save", full)
    with pytest.raises(InputError, match="No space left on device.*free some disk"):
        files.write_checkpoint(file, {"identity": "x", "epoch": 2})
    assert files.read_checkpoint(file, "x")["epoch"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_the_learning_rate_rises_stays_and_falls():
    shape = Settings(lr=2.0, warmup=0.1, cooldown=0.5)
    assert [rate(shape, p) for p in (0.05, 0.1, 0.5, 0.75, 1.0)] == [1.0, 2.0, 2.0, 1.0, 0.0]
    assert [rate(Settings(lr=2.0), p) for p in (0.01, 1.0)] == [2.0, 2.0]


def test_the_theory_started_bias_is_the_logit_of_an_average_item(small_world):
    settings = replace(recipes.gsasrec(k=4, t=1.0), theory_start=True, d=8)
    bias = assemble(settings).model().bias  # of 60 items
    assert bias.sigmoid().item() == pytest.approx(1 / 60, rel=1e-5)  # t = 1: sigma = P
    assert assemble(recipes.sasrec()).model().bias is None


def test_small_weights_are_stepped_in_one_thread_with_the_same_bits(
    small_world, monkeypatch, tmp_path
):
    settings = replace(small_world, d=24, theory_start=True, weight_decay=0.1)  # d: odd vectors
    seen, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *given: (seen.append(torch.get_num_threads()), step(self, *given)),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        small = weights(runs.train(settings))
        assert set(seen) == {1} and torch.get_num_threads() == 3
        monkeypatch.setattr(Step, "SMALL", 0)
        monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "shared"))
        shared = weights(runs.train(settings))
        assert set(seen) == {1, 3} and same(small, shared)
    finally:
        torch.set_num_threads(before)
