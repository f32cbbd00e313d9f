"""What only a GPU can show: the captured step, the Triton route."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from gsas_lab import runs, training
from gsas_lab.batches import Asked, Batch
from gsas_lab.kernels import fused
from gsas_lab.losses import LOSSES
from gsas_lab.samplers import PositiveExcluded
from gsas_lab.settings import PRECISIONS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def on_gpu(small_world):
    return replace(small_world, device="cuda", loss="gbce", k=4, t=0.5, dropout=0.3, epochs=6)


def test_captured_steps_are_the_eager_ones(on_gpu, monkeypatch, tmp_path):
    taken, capture = [], training.Step._capture
    monkeypatch.setattr(
        training.Step, "_capture", lambda step, batch: taken.append(1) or capture(step, batch)
    )
    captured = runs.train(on_gpu).history
    assert taken, "nothing was captured"
    monkeypatch.setattr(training.Step, "WARM", 10**9)
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "eager"))
    eager = runs.train(on_gpu).history
    assert captured["loss"].tolist() == pytest.approx(eager["loss"].tolist(), rel=1e-3)
    assert captured["loss"].iloc[-1] < captured["loss"].iloc[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_loss_can_be_captured_and_learns(on_gpu, loss, precision):
    run = runs.train(replace(on_gpu, loss=loss, precision=precision, lr=0.01, dropout=0.0))
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert run.metrics["recall@10"] > 1.5 * 10 / 60


def test_a_stopped_training_goes_on(on_gpu, stopped):
    whole = runs.train(on_gpu).history["loss"].tolist()
    stopped(on_gpu, 3)
    assert runs.train(on_gpu).history["loss"].tolist() == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("n_items", [60, 3_416, 200_000])
@pytest.mark.parametrize("k", [1, 50])
@pytest.mark.parametrize("loss", [partial(fused.gbce, beta=1.0), fused.sampled_softmax])
def test_the_routes_agree_on_a_gpu(n_items, k, loss):
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(500, 64, generator=g, device="cuda").div_(4).requires_grad_()
    table = torch.randn(n_items + 1, 64, generator=g, device="cuda").div_(4).requires_grad_()
    positives = torch.randint(0, n_items + 1, (500,), generator=g, device="cuda")
    batch = Batch(positives, positives, positives, positives)
    negatives, _ = PositiveExcluded(k, n_items).draw(Asked(batch, slice(None)), g)
    truth = None
    for route in ("portable", "triton", "auto"):
        value = loss(hidden, table, positives, negatives, route=route)
        found = (value.detach(), *torch.autograd.grad(value, (hidden, table)))
        truth = truth or found
        for ours, theirs in zip(found, truth, strict=True):
            assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
