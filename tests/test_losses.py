"""The losses and their fused forms against the literal float64 reference."""

import pytest
import reference
import torch

from gsas_lab import fused, losses, theory
from gsas_lab.errors import InputError
from gsas_lab.samplers import positive_excluded, whole_catalogue

SCORES = torch.tensor([-80.0, -30, -5, -0.1, 0, 0.1, 5, 30, 80])
N_ITEMS = 50


def slopes(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("k", [1, 7])
def test_gbce_equals_the_literal_form_for_scores_of_80(t, k):
    beta = theory.beta_from_t(t, theory.alpha(k, N_ITEMS))
    positive = SCORES
    negative = SCORES.flip(0)[:, None].repeat(1, k)
    value, (d_positive, d_negative) = slopes(
        lambda p, n: losses.gbce(p, n, beta), positive, negative
    )
    truth, (e_positive, e_negative) = slopes(
        lambda p, n: reference.gbce(p, n, beta), positive.double(), negative.double()
    )
    assert value.double() == pytest.approx(truth.item(), rel=1e-6)
    torch.testing.assert_close(d_positive.double(), e_positive, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(d_negative.double(), e_negative, rtol=1e-5, atol=1e-30)
    assert (d_positive[:3] != 0).all(), "a badly scored positive must keep its gradient"


def test_bce_is_gbce_with_beta_one_and_gbce_is_bce_of_the_transformed_positive():
    positive, negative = torch.linspace(-6, 6, 13), torch.randn(13, 4)
    assert losses.bce(positive, negative) == losses.gbce(positive, negative, 1.0)
    for beta in (0.1, 0.5, 1.0):  # Theorem 5.2
        transformed = losses.transform_positive(positive, beta)
        torch.testing.assert_close(
            losses.bce(transformed, negative), losses.gbce(positive, negative, beta)
        )
    literal = torch.log(1 / (torch.sigmoid(positive.double()) ** -0.3 - 1))  # Eq. (25)
    torch.testing.assert_close(
        losses.transform_positive(positive, 0.3).double(), literal, rtol=1e-5, atol=1e-5
    )
    assert torch.isfinite(losses.transform_positive(SCORES, 0.3)).all()


def test_softmaxes_equal_the_literal_form_for_scores_of_80():
    negative = SCORES.flip(0)[:, None].repeat(1, 5)
    value, gradients = slopes(losses.sampled_softmax, SCORES, negative)
    truth, expected = slopes(reference.sampled_softmax, SCORES.double(), negative.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-7)
    every = SCORES.repeat(4, 1)
    targets = torch.tensor([1, 2, 5, 8])
    assert losses.softmax(every, targets).double() == pytest.approx(
        reference.softmax(every, targets).item(), rel=1e-6
    )


def case(k, scale, dtype=torch.float32):
    g = torch.Generator().manual_seed(k)
    hidden = torch.randn(33, 8, generator=g) * scale
    table = torch.randn(N_ITEMS + 1, 8, generator=g) * scale
    positives = torch.randint(1, N_ITEMS + 1, (33,), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (33, k), generator=g)
    negatives[0] = positives[0]  # collisions and repeats
    return hidden.to(dtype), table.to(dtype), positives, negatives


ROUTES = {
    "gbce": (
        lambda h, t, p, n: fused.gbce(h, t, p, n, 0.3),
        lambda p, n: reference.gbce(p, n, 0.3),
    ),
    "bce": (fused.bce, lambda p, n: reference.gbce(p, n, 1.0)),
    "sampled_softmax": (fused.sampled_softmax, reference.sampled_softmax),
}


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("k", [1, 16, 49])
@pytest.mark.parametrize("scale", [0.1, 5.0])  # 5: scores beyond ±80
def test_fused_losses_equal_the_literal_form_and_its_gradients(name, k, scale):
    hidden, table, positives, negatives = case(k, scale)
    ours, literal = ROUTES[name]

    def naive(h, t):
        every = reference.scores(h, t, torch.cat([positives[:, None], negatives], 1))
        return literal(every[:, 0], every[:, 1:])

    value, gradients = slopes(lambda h, t: ours(h, t, positives, negatives), hidden, table)
    truth, expected = slopes(naive, hidden.double(), table.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        error = (got.double() - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5


def test_the_fused_bias_is_added_to_every_score_and_gets_its_gradient():
    hidden, table, positives, negatives = case(4, 0.5, torch.float64)
    bias = torch.tensor(-1.5, dtype=torch.float64)

    def naive(b):
        every = reference.scores(hidden, table, torch.cat([positives[:, None], negatives], 1)) + b
        return reference.gbce(every[:, 0], every[:, 1:], 0.3)

    value, (got,) = slopes(lambda b: fused.gbce(hidden, table, positives, negatives, 0.3, b), bias)
    truth, (wanted,) = slopes(naive, bias)
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(got, wanted)


def test_the_fused_softmax_equals_the_literal_form(monkeypatch):
    monkeypatch.setattr(fused, "_PAIRS", 64)  # several chunks
    hidden, table, positives, _ = case(1, 1.0)
    value, gradients = slopes(lambda h, t: fused.softmax(h, t, positives), hidden, table)
    truth, expected = slopes(
        lambda h, t: reference.softmax(h @ t.T, positives), hidden.double(), table.double()
    )
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert gradients[1][0].abs().sum() == 0, "padding takes no part"


def test_the_form_that_benchmarks_compare_with_is_gbce():
    hidden, table, positives, negatives = case(16, 0.5)
    usual, gradients = slopes(
        lambda h, t: reference.usual_gbce(h, t, positives, negatives, 0.3), hidden, table
    )
    ours, expected = slopes(lambda h, t: fused.gbce(h, t, positives, negatives, 0.3), hidden, table)
    assert usual.item() == pytest.approx(ours.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("collisions", [False, True])
def test_the_expected_loss_is_the_mean_over_every_draw(collisions):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(6, N_ITEMS + 1, generator=g, dtype=torch.float64) * 3
    targets = torch.randint(1, N_ITEMS + 1, (6,), generator=g)
    every = []
    for row, target in zip(scores, targets, strict=True):
        drawn = [i for i in range(1, N_ITEMS + 1) if collisions or i != target]
        negatives = row[drawn][:, None]  # each negative alone: k = 1
        every.append(reference.gbce(row[target].expand(len(drawn)), negatives, 0.4))
    expected = losses.expected_gbce(scores, targets, 1, 0.4, collisions)
    torch.testing.assert_close(expected, torch.stack(every).mean())
    # Of k draws only the weight of the negatives and the k + 1 change.
    positive = losses.gbce(scores.gather(1, targets[:, None])[:, 0], scores[:, :0], 0.4)
    for k in (4, 30):
        negative = 2 * expected - positive  # of one draw
        torch.testing.assert_close(
            losses.expected_gbce(scores, targets, k, 0.4, collisions),
            (positive + k * negative) / (k + 1),
        )


@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_the_fused_expected_loss_equals_the_plain_one_and_its_gradients(
    collisions, scale, monkeypatch
):
    monkeypatch.setattr(fused, "_PAIRS", 64)  # several chunks
    hidden, table, positives, _ = case(1, scale)
    bias = torch.tensor(-1.5)
    value, gradients = slopes(
        lambda h, t, b: fused.expected_gbce(h, t, positives, 16, 0.3, b, collisions),
        hidden, table, bias,
    )  # fmt: skip
    truth, expected = slopes(
        lambda h, t, b: losses.expected_gbce(h @ t.T + b, positives, 16, 0.3, collisions),
        hidden.double(), table.double(), bias.double(),
    )  # fmt: skip
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert gradients[1][0].abs().sum() == 0, "padding takes no part"


@pytest.mark.parametrize("chunk", [1 << 19, 20])
def test_a_table_larger_than_the_draws_gets_the_same_gradient(chunk, monkeypatch):
    monkeypatch.setattr(fused, "_PAIRS", chunk)
    hidden, table, positives, negatives = case(4, 0.5, torch.float64)
    large = torch.cat([table, torch.ones(5_000, table.shape[1], dtype=table.dtype)])
    for route in (
        lambda h, t: fused.gbce(h, t, positives, negatives, 0.3),
        lambda h, t: fused.sampled_softmax(h, t, positives, negatives),
    ):
        value, (d_hidden, d_table) = slopes(route, hidden, table)
        again, (d_hidden_large, d_table_large) = slopes(route, hidden, large)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(d_hidden_large, d_hidden)
        torch.testing.assert_close(d_table_large[: len(table)], d_table)
        assert not d_table_large[len(table) :].any()


def test_fused_chunks_do_not_change_the_loss(monkeypatch):
    hidden, table, positives, negatives = case(16, 0.5, torch.float64)
    whole = slopes(lambda h, t: fused.gbce(h, t, positives, negatives, 0.5), hidden, table)
    monkeypatch.setattr(fused, "_PAIRS", 40)
    parts = slopes(lambda h, t: fused.gbce(h, t, positives, negatives, 0.5), hidden, table)
    torch.testing.assert_close(whole, parts)


def test_samplers_draw_uniformly_with_and_without_the_positive():
    g = torch.Generator().manual_seed(0)
    positives = torch.full((4000,), 3)
    excluded = positive_excluded(positives, 7, 8, g).flatten()
    counts = torch.bincount(excluded, minlength=9)
    assert counts[0] == 0 and counts[3] == 0 and len(counts) == 9
    expected = 4_000
    assert (counts[[1, 2, 4, 5, 6, 7, 8]] - expected).abs().max() < 5 * expected**0.5
    anything = torch.bincount(whole_catalogue(positives, 7, 8, g).flatten(), minlength=9)
    assert anything[0] == 0 and (anything[1:] - 3500).abs().max() < 5 * 3500**0.5
    again = positive_excluded(positives, 7, 8, torch.Generator().manual_seed(0)).flatten()
    assert torch.equal(excluded, again)


@pytest.mark.parametrize("k", [0, -1, 8])
def test_a_k_that_the_catalogue_cannot_serve_is_refused(k):
    with pytest.raises(InputError, match=f"k = {k}.*from 1 to 7"):
        positive_excluded(torch.ones(2, dtype=torch.long), k, 8)
