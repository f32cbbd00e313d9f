"""The losses and their fused forms against the literal float64 reference."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from scipy.optimize import root
from scipy.special import expit, logit

from gsas_lab import theory
from gsas_lab.errors import InputError
from gsas_lab.kernels import fused, native
from gsas_lab.losses import (
    BCE,
    BPR,
    GBCE,
    LOSSES,
    CorrectedLogQ,
    ExpectedGBCE,
    LogQ,
    Loss,
    SampledSoftmax,
    Softmax,
)
from gsas_lab.samplers import SAMPLERS, PositiveExcluded, WholeCatalogue

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
    value, (d_positive, d_negative) = slopes(GBCE(beta).formula, positive, negative)
    truth, (e_positive, e_negative) = slopes(
        lambda p, n: reference.gbce(p, n, beta), positive.double(), negative.double()
    )
    assert value.double() == pytest.approx(truth.item(), rel=1e-6)
    torch.testing.assert_close(d_positive.double(), e_positive, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(d_negative.double(), e_negative, rtol=1e-5, atol=1e-30)
    assert (d_positive[:3] != 0).all(), "a badly scored positive must keep its gradient"


def test_bce_is_gbce_with_beta_one_and_gbce_is_bce_of_the_transformed_positive():
    positive, negative = torch.linspace(-6, 6, 13), torch.randn(13, 4)
    assert BCE().formula(positive, negative) == GBCE(1.0).formula(positive, negative)
    for beta in (0.1, 0.5, 1.0):  # Theorem 5.2
        transformed = torch.from_numpy(theory.positive_transform(positive.double(), beta))
        torch.testing.assert_close(
            BCE().formula(transformed, negative.double()),
            GBCE(beta).formula(positive.double(), negative.double()),
        )


def test_softmaxes_equal_the_literal_form_for_scores_of_80():
    negative = SCORES.flip(0)[:, None].repeat(1, 5)
    value, gradients = slopes(SampledSoftmax().formula, SCORES, negative)
    truth, expected = slopes(reference.sampled_softmax, SCORES.double(), negative.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-7)
    every = SCORES.repeat(4, 1)
    targets = torch.tensor([1, 2, 5, 8])
    assert Softmax().formula(every, targets).double() == pytest.approx(
        reference.softmax(every, targets).item(), rel=1e-6
    )


def case(k, scale, dtype=torch.float32):
    g = torch.Generator().manual_seed(k)
    hidden = torch.randn(33, 16, generator=g) * scale
    table = torch.randn(N_ITEMS + 1, 16, generator=g) * scale
    positives = torch.randint(1, N_ITEMS + 1, (33,), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (33, k), generator=g)
    negatives[0] = positives[0]  # collisions and repeats
    return hidden.to(dtype), table.to(dtype), positives, negatives


FUSED = {
    "gbce": (
        lambda h, t, p, n, route: fused.gbce(h, t, p, n, 0.3, route=route),
        lambda p, n: reference.gbce(p, n, 0.3),
    ),
    "bce": (
        lambda h, t, p, n, route: fused.gbce(h, t, p, n, 1.0, route=route),
        lambda p, n: reference.gbce(p, n, 1.0),
    ),
    "sampled_softmax": (
        lambda h, t, p, n, route: fused.sampled_softmax(h, t, p, n, route=route),
        reference.sampled_softmax,
    ),
}
ON_CPU = ["native", "portable"]


@pytest.fixture(autouse=True)
def _compiler():
    if native.load() is None and "GSAS_LAB_CI" in os.environ:
        pytest.fail("the native route does not build")


def needs(route):
    if route == "native" and native.load() is None:
        pytest.skip("no C++ compiler")


def literally(loss, hidden, table, positives, negatives):
    every = reference.scores(hidden, table, torch.cat([positives[:, None], negatives], 1))
    return loss(every[:, 0], every[:, 1:])


@pytest.mark.parametrize("route", ON_CPU)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("k", [1, 16, 49])
@pytest.mark.parametrize("scale", [0.1, 5.0])  # 5: scores beyond ±80
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_losses_equal_the_literal_form_and_its_gradients(name, k, scale, route, dtype):
    """Within 1e-5 of the largest gradient; in bf16, of the same rounded inputs, its own rounding."""
    needs(route)
    hidden, table, positives, negatives = case(k, scale)
    hidden = hidden.to(dtype)  # what an encoder in bf16 hands over; the table stays in float32
    ours, literal = FUSED[name]
    value, gradients = slopes(lambda h, t: ours(h, t, positives, negatives, route), hidden, table)
    truth, expected = slopes(
        lambda h, t: literally(literal, h, t, positives, negatives), hidden.double(), table.double()
    )
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        rounding = 2**-8 if got.dtype == torch.bfloat16 else 1e-5
        assert (got.double() - wanted).abs().max() <= rounding * wanted.abs().max()


@pytest.mark.parametrize("route", ON_CPU)
@pytest.mark.parametrize("name", FUSED)
def test_positions_of_padding_take_no_part(name, route):
    needs(route)
    hidden, table, positives, negatives = case(16, 0.5)
    ours, literal = FUSED[name]
    positives[[0, 5, 32]] = 0
    real = positives != 0
    value, gradients = slopes(lambda h, t: ours(h, t, positives, negatives, route), hidden, table)
    truth, expected = slopes(
        lambda h, t: literally(literal, h[real], t, positives[real], negatives[real]),
        hidden.double(), table.double(),
    )  # fmt: skip
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    assert not gradients[0][~real].any()
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    for few in (slice(None), slice(0)):  # padding alone, and no position at all
        nothing, gradients = slopes(
            lambda h, t, few=few: ours(
                h, t, torch.zeros_like(positives[few]), negatives[few], route
            ),
            hidden[few], table,
        )  # fmt: skip
        assert nothing == 0 and not any(g.any() for g in gradients)


@pytest.mark.parametrize("d", native.WIDTHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_route_in_every_width_in_chunks_and_with_threads(d, threads):
    needs("native")
    g = torch.Generator().manual_seed(d)
    hidden, table = torch.randn(2_500, d, generator=g), torch.randn(N_ITEMS + 1, d, generator=g)
    positives = torch.randint(0, N_ITEMS + 1, (len(hidden),), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (len(hidden), 5), generator=g)
    found = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        value, gradients = slopes(
            lambda h, t: fused.gbce(h, t, positives, negatives, 0.3, route="native"), hidden, table
        )
    finally:
        torch.set_num_threads(found)
    truth, expected = slopes(
        lambda h, t: fused.gbce(h, t, positives, negatives, 0.3, route="portable"),
        hidden.double(), table.double(),
    )  # fmt: skip
    assert value.double() == pytest.approx(truth.item(), rel=1e-6)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_native_route_refuses_what_is_not_there_and_shows_nan():
    needs("native")
    hidden, table, positives, negatives = case(4, 0.5)
    negatives[3, 1] = N_ITEMS + 1
    with pytest.raises(InputError, match="outside the table's 51 rows"):
        fused.gbce(hidden, table, positives, negatives, 0.3, route="native")
    with pytest.raises(InputError, match="d = 8 is not in"):
        fused.gbce(hidden[:, :8], table[:, :8], positives, positives[:, None], 0.3, route="native")
    for loss in (lambda *x: fused.gbce(*x, 0.3, route="native"), fused.sampled_softmax):
        hidden[7, 2] = torch.nan
        assert loss(hidden, table, positives, positives[:, None]).isnan()


def test_without_a_compiler_the_portable_route_is_taken_and_the_log_says_why(
    monkeypatch, tmp_path, caplog
):
    hidden, table, positives, negatives = case(1, 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for setting, words in (
        ({"PATH": "/nonexistent"}, "no C\\+\\+ compiler was found"),
        ({"CXX": "false"}, "returned non-zero exit status"),
        ({"GSAS_LAB_NATIVE": "0"}, "GSAS_LAB_NATIVE=0"),
    ):
        with monkeypatch.context() as context, caplog.at_level("INFO", "gsas_lab.kernels.native"):
            for name, value in setting.items():
                context.setenv(name, value)
            native.load.cache_clear()
            assert fused.choose(hidden, table) == "portable"
            assert re.search(words, caplog.text), caplog.text
            with pytest.raises(InputError, match="choose route='portable'"):
                fused.gbce(hidden, table, positives, negatives, 0.3, route="native")
        caplog.clear()
    native.load.cache_clear()


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """A cache folder of one's own and a quick compiler, which writes down each of its calls."""
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'echo "$2" >> {calls}\n'
        "for name in sampled update pack_table scan_table; do\n"
        '  code="$code int $name(void) { return 0; }"\n'
        "done\n"
        'echo "$code" | exec cc -shared -fPIC -x c - -o "$2"\n'
    )
    compiler.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.cache_clear()
    yield lambda: len(calls.read_text().splitlines())
    native.load.cache_clear()


def loaded_again():
    native.load.cache_clear()
    return native.load()


def becomes(content):
    """Another file in the library's place: this process still has the old one mapped."""

    def harm(path):
        told = content(path.read_bytes())
        path.unlink()
        path.write_bytes(told)

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        becomes(lambda whole: whole[:5000]),
        becomes(lambda whole: b""),
        becomes(lambda whole: b"no library"),
        becomes(lambda whole: whole + b"\0"),
        lambda path: path.with_name(path.name + ".sha256").unlink(),
        lambda path: path.with_name(path.name + ".sha256").write_bytes(b"\xff"),
    ],
)
def test_a_compiled_library_that_was_changed_is_built_again_and_that_is_said_once(
    harm, compilations, caplog
):
    assert loaded_again() is not None and loaded_again() is not None
    assert compilations() == 1 and not caplog.text
    harm(native._path())
    assert loaded_again() is not None and loaded_again() is not None
    assert compilations() == 2
    assert len(caplog.records) == 1 and "is compiled again" in caplog.text


def test_a_library_without_its_symbol_is_built_again(compilations, caplog):
    path = native._path()
    path.parent.mkdir(mode=0o700)
    code = "echo 'int other(void) { return 0; }' | cc -shared -fPIC -x c - -o "
    assert os.system(code + str(path)) == 0
    path.with_name(path.name + ".sha256").write_text(native._checksum(path))
    native._kept(path)
    assert "sampled" in caplog.text and not path.exists()


def test_a_cache_that_others_may_write_to_is_not_trusted(compilations, monkeypatch, caplog):
    assert loaded_again() is not None
    folder = native._path().parent
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    assert loaded_again() is not None and loaded_again() is not None
    assert compilations() == 2 and folder.stat().st_mode & 0o022 == 0
    assert len(caplog.records) == 1 and "writable by others" in caplog.text
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert loaded_again() is None
    assert "belongs to another user: set XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("given", ["here", "./here", ""])
def test_a_cache_folder_that_is_not_absolute_is_ignored(given, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert native._path().parent == tmp_path / ".cache" / "gsas-lab"


def test_a_killed_compilation_leaves_nothing_behind(compilations, tmp_path, monkeypatch):
    """Neither its folder nor the compiler's own files, and nobody waits for its lock."""
    fast = Path(os.environ["CXX"])
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntouch $TMPDIR/cc.s {tmp_path}/begun\nexec sleep 60\n")
    slow.chmod(0o755)
    child = subprocess.Popen(
        [sys.executable, "-c", "from gsas_lab.kernels import native; native.load()"],
        env=os.environ | {"CXX": str(slow)}, start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert child.poll() is None
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    monkeypatch.setenv("CXX", str(fast))
    path = native._path()
    assert list(path.parent.glob("build-*/*"))
    assert loaded_again() is not None and compilations() == 1
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.name + ".sha256", "lock"}


def test_the_route_is_chosen_by_rule_and_can_be_forced():
    hidden, table, positives, negatives = case(1, 0.5)
    if native.load() is not None:
        assert fused.choose(hidden, table) == "native"
    assert fused.choose(hidden.double(), table.double()) == "portable"
    assert fused.choose(hidden[:, :8], table[:, :8]) == "portable"
    with pytest.raises(InputError, match="Route 'fast' is unknown: choose one of auto, native"):
        fused.gbce(hidden, table, positives, negatives, 0.3, route="fast")
    with pytest.raises(InputError, match="needs CUDA and Triton"):
        fused.gbce(hidden, table, positives, negatives, 0.3, route="triton")


def test_a_fused_loss_scales_and_goes_backward_once():
    hidden, table, positives, negatives = case(4, 0.5)
    hidden.requires_grad_()
    one = fused.gbce(hidden, table, positives, negatives, 0.3)
    (plain,) = torch.autograd.grad(one, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        one.backward()
    (tripled,) = torch.autograd.grad(
        3 * fused.gbce(hidden, table, positives, negatives, 0.3), hidden
    )
    torch.testing.assert_close(tripled, 3 * plain)


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
    expected = ExpectedGBCE(0.4, 1, collisions).formula(scores, targets)
    torch.testing.assert_close(expected, torch.stack(every).mean())
    # Of k draws only the weight of the negatives and the k + 1 change.
    positive = GBCE(0.4).formula(scores.gather(1, targets[:, None])[:, 0], scores[:, :0])
    for k in (4, 30):
        negative = 2 * expected - positive  # of one draw
        torch.testing.assert_close(
            ExpectedGBCE(0.4, k, collisions).formula(scores, targets),
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
        lambda h, t, b: ExpectedGBCE(0.3, 16, collisions).formula(h @ t.T + b, positives),
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


@pytest.mark.parametrize("name", ["gbce", "sampled_softmax", "bpr"])
@pytest.mark.parametrize("n_sets", [1, 5])
def test_shared_negatives_equal_the_same_ones_repeated(name, n_sets, monkeypatch):
    g = torch.Generator().manual_seed(n_sets)
    hidden, table = torch.randn(40, 16, generator=g), torch.randn(N_ITEMS + 1, 16, generator=g)
    positives = torch.randint(0, N_ITEMS + 1, (40,), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (n_sets, 30), generator=g)
    sets = torch.randint(0, n_sets, (40,), generator=g)
    bias = torch.tensor(0.3)
    more = {"beta": 0.4} if name == "gbce" else {}
    loss = getattr(fused, name)
    literally_it = {"gbce": GBCE(0.4), "sampled_softmax": SampledSoftmax(), "bpr": BPR()}[name]

    def literal(h, t, b):
        real = positives > 0
        own = (h[real] * t[positives[real]]).sum(1) + b
        others = (h[real, None] * t[negatives[sets[real]]]).sum(-1) + b
        return literally_it.formula(own, others)

    truth = slopes(literal, hidden.double(), table.double(), bias.double())
    monkeypatch.setattr(fused, "_PAIRS", 20)  # several parts of each set
    for given in ({"negatives": negatives, "sets": sets}, {"negatives": negatives[sets]}):
        found = slopes(
            lambda h, t, b, given=given: loss(h, t, positives, bias=b, **given, **more),
            hidden, table, bias,
        )  # fmt: skip
        for ours, theirs in zip((found[0], *found[1]), (truth[0], *truth[1]), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def whole_numbers(size, levels, k=16):
    """Scores of `size` times one of the levels, plus some units: exact in float32 by any route."""
    g = torch.Generator().manual_seed(3)
    hidden = torch.randint(-1, 2, (33, 16), generator=g).float()
    table = torch.randint(-1, 2, (N_ITEMS + 1, 16), generator=g).float()
    hidden[:, 0] = size**0.5
    table[:, 0] = size**0.5 * torch.tensor(levels)[torch.arange(N_ITEMS + 1) % len(levels)]
    positives = torch.randint(0, N_ITEMS + 1, (33,), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (33, k), generator=g)
    negatives[0] = positives[0] = 1
    return hidden, table, positives, negatives


@pytest.mark.parametrize("bias", [None, 1e6])
@pytest.mark.parametrize("levels", [[1.0], [-1.0], [1.0, 0.0, -1.0]])
@pytest.mark.parametrize("size", [1e4, 1e6])
@pytest.mark.parametrize("route", [*ON_CPU, "sets"])
@pytest.mark.parametrize("name", ["gbce", "sampled_softmax", "bpr"])
def test_scores_of_a_million_get_the_gradients_of_float64(name, route, size, levels, bias):
    """A maximum that is taken off too late leaves 55 % of error in the softmax's gradients."""
    needs(route)
    if name == "bpr" and route == "native":
        return
    hidden, table, positives, negatives = whole_numbers(size, levels)
    more = {"gbce": {"beta": 0.3, "route": route}, "bpr": {}}.get(name, {"route": route})
    sets = None
    if route == "sets":
        more.pop("route", None)
        sets = torch.arange(len(positives)) % 3
        more |= {"sets": sets}
    real = positives > 0

    def literal(h, t, b):
        drawn = negatives if sets is None else negatives[sets]
        every = reference.scores(h, t, torch.cat([positives[:, None], drawn], 1))[real] + b
        if name == "bpr":
            return torch.nn.functional.softplus(every[:, 1:] - every[:, :1]).mean()
        rest = (0.3,) if name == "gbce" else ()
        return getattr(reference, name)(every[:, 0], every[:, 1:], *rest)

    b = torch.tensor(bias or 0.0)
    value, gradients = slopes(
        lambda h, t, b: getattr(fused, name)(
            h, t, positives, negatives, bias=None if bias is None else b, **more
        ) + 0 * b,
        hidden, table, b,
    )  # fmt: skip
    truth, expected = slopes(literal, hidden.double(), table.double(), b.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-5, abs=1e-6)
    if bias is not None:
        assert gradients[2].double() == pytest.approx(expected[2].item(), abs=1e-5)
    for got, wanted in zip(gradients[:2], expected[:2], strict=True):
        rounding = 1e-5 * wanted.abs().max() + 1e-8 * size**0.5  # of slopes, times such a row
        assert (got.double() - wanted).abs().max() <= rounding


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_plain_losses_of_scores_of_a_million_get_the_gradients_of_float64(size):
    hidden, table, positives, negatives = whole_numbers(size, [1.0, 0.0, -1.0])
    every = reference.scores(hidden, table, torch.arange(N_ITEMS + 1).expand(33, -1))
    targets = positives.clamp(min=1)
    own, others = every.gather(1, targets[:, None])[:, 0], every.gather(1, negatives)
    for plain, literal, given in (
        (SampledSoftmax().formula, reference.sampled_softmax, (own, others)),
        (BCE().formula, lambda p, n: reference.gbce(p, n, 1.0), (own, others)),
        (
            lambda s: Softmax().formula(s, targets),
            lambda s: reference.softmax(s, targets),
            (every,),
        ),
    ):
        value, gradients = slopes(plain, *(x.float() for x in given))
        truth, expected = slopes(literal, *given)
        assert value.double() == pytest.approx(truth.item(), rel=1e-6, abs=1e-6)
        for got, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fast", [True, False])
def test_a_positive_of_a_million_does_not_swallow_the_expected_loss_of_the_others(fast):
    hidden, table = torch.zeros(1, 16), torch.zeros(N_ITEMS + 1, 16)
    hidden[0, :2], table[:, 1], table[7] = 1000.0, -0.004, 0.0
    table[7, 0] = 1000.0  # a score of 10⁶; all others are −4
    one = torch.tensor([7])
    if fast:
        value = fused.expected_gbce(hidden, table, one, 5, 0.3)
    else:
        value = ExpectedGBCE(0.3, 5).formula(hidden @ table.T, one)
    truth = 5 / 6 * torch.nn.functional.softplus(torch.tensor(-4.0, dtype=torch.float64))
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize("d", [16, 20])
def test_offsets_are_added_to_the_scores_of_their_items_alone(d):
    hidden, table = torch.randn(9, d), torch.randn(N_ITEMS + 1, d)
    offsets = torch.randn(N_ITEMS + 1)
    h, t = fused.offset(hidden, table, offsets)
    torch.testing.assert_close(h @ t.T, hidden @ table.T + offsets)
    assert h.shape[1] == 32


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("k", [62, 63, 64, 130])
@pytest.mark.parametrize("name", ["gbce", "sampled_softmax"])
def test_the_native_route_over_several_tiles_with_a_bias_on_either_pool(name, k, pool, monkeypatch):
    needs("native")
    if not pool:
        monkeypatch.setattr(native, "_pool", dict)
    g = torch.Generator().manual_seed(k)
    hidden, table = torch.randn(300, 32, generator=g), torch.randn(N_ITEMS + 1, 32, generator=g)
    positives = torch.randint(0, N_ITEMS + 1, (len(hidden),), generator=g)
    negatives = torch.randint(1, N_ITEMS + 1, (len(hidden), k), generator=g)
    real, bias = positives != 0, torch.tensor(-1.5)

    def ours(h, t, b):
        if name == "gbce":
            return fused.gbce(h, t, positives, negatives, 0.3, b, "native")
        return fused.sampled_softmax(h, t, positives, negatives, b, "native")

    def literal(h, t, b):
        items = torch.cat([positives[real, None], negatives[real]], 1)
        every = reference.scores(h[real], t, items) + b
        if name == "gbce":
            return reference.gbce(every[:, 0], every[:, 1:], 0.3)
        return reference.sampled_softmax(every[:, 0], every[:, 1:])

    value, gradients = slopes(ours, hidden, table, bias)
    truth, expected = slopes(literal, hidden.double(), table.double(), bias.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


def test_the_native_route_refuses_shapes_that_do_not_fit():
    needs("native")
    hidden, table, positives, negatives = case(4, 0.5)
    for wrong in (
        (hidden[:5], table, positives, negatives),
        (hidden, table, positives, negatives[:5]),
    ):
        with pytest.raises(InputError, match="do not fit together"):
            fused.gbce(*wrong, 0.3, route="native")


def of_run(name, n_items=N_ITEMS, k=8):
    return LOSSES[name].of(0.6, PositiveExcluded(k, n_items))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_formula_on_gathered_scores_with_the_same_gradients(name):
    """The fused form and the literal line are one loss, with a bias and with padding."""
    loss, (hidden, table, positives, negatives) = of_run(name), case(8, 1.0)
    positives[[0, 5, 32]] = 0
    bias = torch.tensor(0.0 if name == "softmax" else -1.5)  # softmax knows no bias
    real = positives != 0

    def literal(h, t, b):
        every = h[real] @ t.T + b
        if loss.whole:
            return loss.formula(every, positives[real])
        own = every.gather(1, positives[real, None])[:, 0]
        return loss.formula(own, every.gather(1, negatives[real]))

    def ours(h, t, b):
        return loss(h, t, positives, b, None if loss.whole else negatives) + 0.0 * b

    value, gradients = slopes(ours, hidden, table, bias)
    truth, expected = slopes(literal, hidden.double(), table.double(), bias.double())
    assert value.double() == pytest.approx(truth.item(), rel=1e-5)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("name", [n for n in LOSSES if not LOSSES[n].whole])
def test_the_form_for_losses_without_a_kernel_is_the_fused_one(name):
    loss, (hidden, table, positives, negatives) = of_run(name), case(8, 1.0)
    positives[[0, 5, 32]] = 0
    sets = torch.arange(33) % 4
    for given in ((negatives, None), (negatives[:4], sets)):
        inputs = hidden, table
        value, gradients = slopes(lambda h, t, g=given: loss(h, t, positives, None, *g), *inputs)
        plain, expected = slopes(
            lambda h, t, g=given: Loss.__call__(loss, h, t, positives, None, *g), *inputs
        )
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
        for got, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", [PositiveExcluded(8, 50), WholeCatalogue(8, 50)])
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_fixed_point_found_from_the_formula_alone_is_theorem_5_1(sampler, beta):
    loss, prior = GBCE(beta), np.array([1e-5, 1e-3, 0.1, 0.5, 0.9])
    theorem, found = loss.fixed_point(sampler), Loss.fixed_point(loss, sampler)
    np.testing.assert_allclose(found.logit(prior), theorem.logit(prior), atol=1e-9)
    np.testing.assert_allclose(found.probability(prior), theorem.probability(prior), atol=1e-9)
    scores = np.linspace(-12, 12, 9)
    np.testing.assert_allclose(found.prior(scores), theorem.prior(scores), rtol=1e-9)


def test_losses_that_learn_differences_have_no_fixed_point_to_be_found():
    for loss in (SampledSoftmax(), BPR()):
        assert Loss.fixed_point(loss, PositiveExcluded(8, 50)) is None


def test_the_correction_leaves_a_rate_of_one_and_a_softmax_that_is_p():
    sampler = SAMPLERS["popularity"](4, 5, np.array([1.0, 2, 3, 4, 5]))
    corrected = LogQ(GBCE(0.3), sampler.alpha, 5)
    point = corrected.fixed_point(sampler)
    assert (point.alpha, point.pull, point.collisions) == (1.0, 0.3, True)
    softmax = LogQ(SampledSoftmax(), sampler.alpha, 5)
    scores = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(softmax.prior(scores, sampler).sum(-1), 1)
    uncorrected = SampledSoftmax().prior(scores - np.log(sampler.alpha), sampler)
    np.testing.assert_allclose(softmax.prior(scores, sampler), uncorrected)


def fixed_point_of_expected(gradient, prior):
    """The scores, last one 0, at which the mean gradient over positives and draws vanishes."""
    found = root(
        lambda s: gradient(np.append(s, 0.0))[:-1], np.log(prior / prior[-1])[:-1], tol=1e-12
    )
    assert found.success
    return np.append(found.x, 0.0)


def expected_gradient(loss, prior, q, k, masked):
    """s -> Σ over positives and all n^k draws of chance · ∂loss/∂s, exactly; masked: draws that hold
    the positive never come.
    """
    n = len(prior)
    draws = np.array(list(itertools.product(range(n), repeat=k)))

    def gradient(scores):
        s = torch.tensor(scores, requires_grad=True)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(n):
            chance, some = q[draws].prod(axis=1), draws
            if masked:
                keep = (draws != i).all(axis=1)
                some, chance = draws[keep], chance[keep] / chance[keep].sum()
            items = torch.tensor(some)
            positives = torch.full((len(some),), i)
            each = torch.func.vmap(loss)(s[positives], s[items], positives, items)
            total = total + prior[i] * (torch.tensor(chance) * each).sum()
        return torch.autograd.grad(total, s)[0].numpy()

    return gradient


PRIOR = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
Q = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def usual_softmax(k):
    log_alpha = torch.tensor(np.log(k * Q))
    return lambda s, negative, i, items: SampledSoftmax().formula(
        s - log_alpha[i], negative - log_alpha[items]
    )


def corrected_by(loss, k):
    wrapped = CorrectedLogQ(loss, k * Q, len(Q), True)

    def value(s, negative, i, items):
        return loss.weighted(
            s, negative, wrapped.log_weight(i[None] + 1, items[None] + 1)[0].double()
        )

    return value


def authors_softmax(k):
    """As the authors' code has it: of the m negatives left each stands for (1 − q⁺) / (m q)."""
    q = torch.tensor(Q)

    def value(s, negative, i, items):
        met = items == i
        left = (~met).sum()
        weight = torch.log((1 - q[i]) / (left.clamp(min=1) * q[items])).masked_fill(met, -1e30)
        return SampledSoftmax().weighted(s, negative, weight)

    return value


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_usual_correction_is_exact_at_any_k_where_the_positive_may_be_drawn(k):
    """Slots of positive and draws are exchangeable: the positive is x_j in proportion to P/q."""
    s = fixed_point_of_expected(expected_gradient(usual_softmax(k), PRIOR, Q, k, False), PRIOR)
    np.testing.assert_allclose(np.exp(s) / np.exp(s).sum(), PRIOR, rtol=1e-9)


def test_the_usual_correction_is_off_where_the_positive_is_never_drawn_and_more_so_with_k():
    off = []
    for k in (1, 2, 4):
        s = fixed_point_of_expected(expected_gradient(usual_softmax(k), PRIOR, Q, k, True), PRIOR)
        off.append(np.exp(s) / np.exp(s).sum() / PRIOR)
    np.testing.assert_allclose(off[0] * (1 - Q) / (off[0] * (1 - Q))[0], 1, rtol=1e-9)  # P/(1 − q)
    assert off[0][0] == pytest.approx(1.129, abs=1e-3)
    assert off[0][0] < off[1][0] < off[2][0] and off[2][0] == pytest.approx(1.266, abs=1e-3)


def test_the_corrected_one_comes_to_p_as_k_grows_and_not_before():
    worst = {"ours": [], "authors": []}
    for k in (1, 2, 4):
        for name, value in (
            ("ours", corrected_by(SampledSoftmax(), k)),
            ("authors", authors_softmax(k)),
        ):
            s = fixed_point_of_expected(expected_gradient(value, PRIOR, Q, k, False), PRIOR)
            worst[name].append(np.abs(np.exp(s) / np.exp(s).sum() / PRIOR - 1).max())
    np.testing.assert_allclose(worst["ours"], [0.385, 0.149, 0.070], atol=1e-3)
    np.testing.assert_allclose(worst["authors"], [0.566, 0.184, 0.106], atol=1e-3)


def test_the_corrected_softmax_has_the_full_softmaxs_gradient_when_each_item_stands_for_itself():
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    full = Softmax().formula(torch.cat([torch.zeros(3, 1), scores], 1), torch.ones(3, dtype=int))
    once = SampledSoftmax().weighted(scores[:, 0], scores[:, 1:], torch.zeros(3, 5))
    for one, other in zip(
        torch.autograd.grad(full, scores), torch.autograd.grad(once, scores), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_corrected_gbce_rests_where_its_fixed_point_says_and_is_p_with_beta_one(k, beta):
    """σ(s) = βP / (βP + 1 − P), whatever q; the usual one, whose positive may be drawn: e^s = βP."""
    sampler = WholeCatalogue(k, 5)  # any: its rates are weighed away
    at = CorrectedLogQ(GBCE(beta), k * Q, 5, True).fixed_point(sampler).logit(PRIOR)
    np.testing.assert_allclose(at, logit(PRIOR) + np.log(beta))
    gradient = expected_gradient(corrected_by(GBCE(beta), k), PRIOR, Q, k, False)
    np.testing.assert_allclose(gradient(at), 0, atol=1e-8)
    if beta == 1:
        np.testing.assert_allclose(expit(at), PRIOR)
    log_alpha = torch.tensor(np.log(k * Q))

    def usual(s, negative, i, items):
        return GBCE(beta).formula(s - log_alpha[i], negative - log_alpha[items])

    gradient = expected_gradient(usual, PRIOR, Q, k, False)
    np.testing.assert_allclose(gradient(np.log(beta * PRIOR)), 0, atol=1e-9)
    assert np.abs(gradient(at)).max() > 1e-3


@pytest.mark.parametrize("loss", [GBCE(0.4), SampledSoftmax()])
@pytest.mark.parametrize("shared", [False, True])
def test_the_corrected_form_from_hidden_states_is_its_literal_line(loss, shared):
    torch.manual_seed(0)
    counts = torch.arange(1.0, 31).numpy()
    sampler = SAMPLERS["popularity"](6, 30, counts)
    wrapped = CorrectedLogQ(loss, sampler.alpha, 30, True)
    hidden, table = torch.randn(9, 8, dtype=torch.float64), torch.randn(31, 8, dtype=torch.float64)
    positives = torch.randint(1, 31, (9,))
    positives[4] = 0  # padding
    sets = torch.arange(9) // 3 if shared else None
    negatives = torch.randint(1, 31, (3 if shared else 9, 6))
    negatives[0, :2] = positives[0]  # collisions
    negatives[-1] = positives[-1]  # none is left
    bias = torch.tensor(-0.5, dtype=torch.float64)
    drawn = negatives if sets is None else negatives[sets]

    def literal(hidden, table, bias):
        values = []
        for p in range(9):
            if positives[p] == 0:
                continue
            score = lambda item, p=p: hidden[p] @ table[item] + bias  # noqa: E731
            left = [n for n in drawn[p].tolist() if n != positives[p]]
            s, alpha = score(positives[p]), torch.tensor(sampler.alpha)
            if isinstance(loss, GBCE):
                push = sum(torch.nn.functional.softplus(score(n)) / alpha[n - 1] for n in left)
                values.append((0.4 * torch.nn.functional.softplus(-s) + push) / 7)
            else:
                others = sum(score(n).exp() / alpha[n - 1] for n in left)
                if left:
                    p_own = s.exp() / (s.exp() + others)
                    values.append(-(1 - p_own.detach()) * torch.log(s.exp() / others))
                else:
                    values.append(0 * s)
        return sum(values) / len(values)

    expected = slopes(literal, hidden, table, bias)
    found = slopes(
        lambda h, t, b: wrapped(h, t, positives, b, negatives, sets), hidden, table, bias
    )
    for one, other in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
