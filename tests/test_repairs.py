"""Repairs: outside optimisers, literal loops, and what must follow from Theorem 5.1."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from gsas_lab import calibration, diagnosis, evidence, repairs, runs, theory
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError

ALPHA, BETA = 1 / 999, 1.0  # SASRec, k = 1, a thousand items


def drawn(slope: float, shift: float, n: int = 200_000):
    """Scores, and hits that happen with probability σ(slope · s + shift)."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, n)
    return scores, rng.random(n) < expit(slope * scores + shift)


def test_platt_and_temperature_find_what_made_the_hits():
    scores, hit = drawn(0.7, -4.0)
    fitted = repairs.platt(scores, hit)
    grid = np.linspace(-8, 8, 9)
    np.testing.assert_allclose(fitted(grid), expit(0.7 * grid - 4.0), rtol=0.1)
    scores, hit = drawn(0.5, 0.0)
    np.testing.assert_allclose(repairs.temperature(scores, hit)(grid), expit(grid / 2), atol=0.01)


def test_the_logistic_fits_are_the_minimum_that_another_optimiser_finds():
    scores, hit = drawn(1.3, -6.0, 5_000)
    for fit, start in ((repairs.temperature, [1.0]), (repairs.platt, [1.0, 0.0])):

        def loss(w):
            logits = w[0] * scores + (w[1] if len(w) == 2 else 0.0)
            return np.logaddexp(0, np.where(hit, -logits, logits)).mean()

        best = minimize(loss, start, method="Nelder-Mead", options={"fatol": 1e-12, "xatol": 1e-9})
        ours = calibration.log_loss(fit(scores, hit)(scores), hit)
        assert ours <= best.fun + 1e-9


def test_isotonic_never_falls_and_has_the_least_squared_error():
    scores, hit = drawn(0.7, -1.0, 2_000)
    scores = scores.round(1)  # with ties
    prob = repairs.isotonic(scores, hit)(scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(prob[order]) >= 0).all()
    s, place = np.unique(scores, return_inverse=True)
    # Each pooled level is the mean of its hits: the mark of the least-squares solution.
    for level in np.unique(prob):
        assert hit[prob == level].mean() == pytest.approx(level, abs=1e-12)
    others = [repairs.platt(scores, hit)(scores), np.full(len(scores), hit.mean())]
    assert all(calibration.brier(prob, hit) <= calibration.brier(p, hit) for p in others)
    assert repairs.isotonic(scores, hit)(np.array([-99.0, 99.0])).tolist() == [
        prob.min(), prob.max()
    ]  # fmt: skip


def test_the_analytic_form_cures_and_keeps_the_order_to_the_last_item():
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.full(3_000, 0.05), size=40)
    scores = theory.converged_logit(np.maximum(prior, 1e-12), ALPHA, BETA).astype(np.float32)
    hit = rng.random(prior.shape) < prior
    prob = theory.FixedPoint(ALPHA, BETA).prior(scores)
    assert (np.argsort(prob, kind="stable") == np.argsort(scores, kind="stable")).all()
    raw = calibration.expected_calibration_error(expit(scores.astype(float)), hit)
    assert calibration.expected_calibration_error(prob, hit) < raw / 10


def test_temperature_alone_cannot_take_the_offset_away():
    scores, hit = drawn(1.0, -8.0)  # an honest model, raised by 8
    ece = {
        fit.__name__: calibration.expected_calibration_error(fit(scores, hit)(scores), hit)
        for fit in (repairs.temperature, repairs.platt)
    }
    assert ece["platt"] < ece["temperature"] / 50


@pytest.mark.parametrize("fit", [repairs.temperature, repairs.platt, repairs.isotonic])
def test_a_fit_needs_hits_misses_and_finite_scores(fit):
    with pytest.raises(InputError, match="hits and misses"):
        fit([1.0, 2.0], [True, True])
    with pytest.raises(InputError, match="finite"):
        fit([1.0, np.inf], [True, False])
    with pytest.raises(InputError, match="finite"):
        fit([1.0, 2.0, 3.0], [True, False])


def test_compare_counts_candidates_only_and_sees_a_moved_target():
    scores = np.array([[3.0, 2.0, 1.0, 9.0], [1.0, 2.0, 3.0, 9.0]])
    hit = np.array([[True, False, False, False], [False, True, False, False]])
    may = np.array([[True, True, True, False], [True, True, True, True]])
    cures = {
        "raw": expit,
        "backwards": lambda s: expit(-s),
        "flat": lambda s: np.full(s.shape, 0.5),
    }
    table = repairs.compare(cures, scores, hit, may, top=1)
    prob = expit(scores)
    assert table.loc["raw", "sum"] == pytest.approx((prob[0, :3].sum() + prob[1].sum()) / 2)
    assert table.loc["raw", "brier"] == pytest.approx(calibration.brier(prob[may], hit[may]))
    assert table.loc["raw", "predicted_top"] == pytest.approx((expit(3.0) + expit(9.0)) / 2)
    assert table.loc["raw", "observed_top"] == 0.5
    # Row 0: first of three. Row 1: third of four; the other way round it is second.
    assert table["moved"].tolist() == [0, 2, 2]
    with pytest.raises(InputError, match="one hit in each row"):
        repairs.compare(cures, scores, ~hit)


def users_of(scores, prior, seed=0):
    """Matrices (users, items): scores, and for each user one hit drawn from its prior."""
    rng = np.random.default_rng(seed)
    cumulative = prior.cumsum(axis=1)
    drawn = (rng.random((len(prior), 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    return scores, np.arange(prior.shape[1]) == drawn[:, None]


def world(users=600, items=40, seed=0):
    prior = np.random.default_rng(seed).dirichlet(np.full(items, 0.3), users)
    return np.maximum(prior, 1e-9) / np.maximum(prior, 1e-9).sum(axis=1, keepdims=True)


def test_an_offset_meets_the_hits_and_is_the_least_log_loss():
    scores, hit = drawn(1.0, -5.0, 20_000)
    fitted = repairs.offset(scores, hit)
    assert fitted.slope == 1 and fitted(scores).sum() == pytest.approx(hit.sum(), rel=1e-9)
    best = minimize(
        lambda o: np.logaddexp(0, np.where(hit, -(scores + o), scores + o)).mean(), [0.0]
    )
    assert fitted.shift == pytest.approx(best.x[0], abs=1e-4)
    weight = 1 + np.arange(len(hit)) % 3  # a weight of 3 is three times the pair
    repeated = repairs.offset(np.repeat(scores, weight), np.repeat(hit, weight))
    assert repairs.offset(scores, hit, weight).shift == pytest.approx(repeated.shift, abs=1e-9)


def test_beta_is_the_minimum_that_another_optimiser_finds_and_holds_tiny_probabilities():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 20_000)
    truth = repairs.Beta(0.5, 2.0, -1.0)
    hit = rng.random(len(scores)) < truth(scores)
    fitted = repairs.beta(scores, hit)
    np.testing.assert_allclose([fitted.a, fitted.b, fitted.c], [0.5, 2.0, -1.0], atol=0.15)

    def loss(w):
        p = np.clip(repairs.Beta(abs(w[0]), abs(w[1]), w[2])(scores), 1e-300, 1 - 1e-16)
        return -np.where(hit, np.log(p), np.log1p(-p)).mean()

    best = minimize(loss, [1.0, 1.0, 0.0], method="Nelder-Mead",
                    options={"fatol": 1e-12, "xatol": 1e-9, "maxiter": 5000})  # fmt: skip
    assert loss([fitted.a, fitted.b, fitted.c]) <= best.fun + 1e-9
    assert repairs.Beta(1.0, 1.0, 0.0)(-70.0) == pytest.approx(np.exp(-70.0), rel=1e-12)


def test_beta_never_falls_where_the_free_fit_would():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, 5_000)
    hit = rng.random(5_000) < expit(1.5 * -np.logaddexp(0, -scores) - 0.6 * np.logaddexp(0, scores))
    fitted = repairs.beta(scores, hit)  # b would be -0.6
    assert fitted.b == 0 and fitted.a > 0
    assert (np.diff(fitted(np.linspace(-9, 9, 50))) > 0).all()


def test_groups_are_drawn_to_the_common_offset_by_how_little_they_tell():
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(40), np.geomspace(40, 4_000, 40).astype(int))
    true = rng.normal(-3.0, 0.7, 40)
    scores = rng.normal(0, 1, len(names))
    hit = rng.random(len(names)) < expit(scores + true[names])
    pairs = repairs.Pairs(scores, hit, np.full(1, len(names)), names)
    found = repairs.by_group(pairs)
    single = np.full(40, found.common)
    alone = np.array([
        repairs.offset(scores[names == g], hit[names == g]).shift if hit[names == g].any() else -12.0
        for g in range(40)
    ])  # fmt: skip
    error = {
        name: np.sqrt(np.mean((shifts - true) ** 2))
        for name, shifts in dict(single=single, alone=alone, drawn=found.shifts).items()
    }
    assert error["drawn"] < 0.8 * min(error["single"], error["alone"])
    pull = (np.array(found.shifts) - single) / (alone - single)
    rich, poor = slice(30, 40), slice(0, 10)
    assert np.median(pull[rich]) > 0.9 > 0.75 > np.median(pull[poor]) > 0
    # The mark of the greatest posterior density: what is missing in a group is as its distance.
    p = expit(scores + np.array(found.shifts)[names])
    missing = np.bincount(names, weights=hit - p)
    ratio = missing / (np.array(found.shifts) - single)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert ratio[0] > 0


def test_groups_that_differ_by_chance_alone_get_one_offset():
    rng = np.random.default_rng(3)
    scores, names = rng.normal(0, 1, 30_000), np.arange(30_000) % 20
    hit = rng.random(30_000) < expit(scores - 3)
    found = repairs.by_group(repairs.Pairs(scores, hit, np.full(1, 30_000), names))
    alone = [repairs.offset(scores[names == g], hit[names == g]).shift for g in range(20)]
    assert np.std(found.shifts) < 0.35 * np.std(alone)
    assert found([0.5], group=["never seen"])[0] == expit(0.5 + found.common)


def test_a_rank_wise_repair_mends_what_is_wrong_at_the_top_only():
    prior = world(3_000)
    honest = np.log(prior / (1 - prior))
    order = np.argsort(-honest, axis=1)
    scores = honest.copy()  # rank 1 is too sure, and nothing else
    np.put_along_axis(scores, order[:, :1], np.take_along_axis(honest, order[:, :1], 1) + 2.0, 1)
    pairs = repairs.Pairs.of(*users_of(scores, prior))
    found = repairs.rank_wise(pairs)
    assert found.last == (1, 2, 4, 8, 10)
    prob = found(pairs.scores, rank=pairs.rank)
    first = pairs.rank == 1
    literal = repairs.platt(pairs.scores[first], pairs.hit[first])
    np.testing.assert_allclose(prob[first], literal(pairs.scores[first]), rtol=1e-6)
    some = (pairs.rank > 4) & (pairs.rank <= 8)
    weighed = repairs.platt(pairs.scores[some], pairs.hit[some], 1 / np.log2(1 + pairs.rank[some]))
    np.testing.assert_allclose(prob[some], weighed(pairs.scores[some]))

    def at_the_top(p):
        return abs(p[first].mean() - pairs.hit[first].mean())

    single = repairs.offset(pairs.scores, pairs.hit)
    assert at_the_top(prob) < at_the_top(single(pairs.scores)) / 10


def test_ranks_are_counted_within_users_and_equal_scores_keep_their_order():
    pairs = repairs.Pairs(
        np.array([1.0, 3.0, 2.0, 5.0, 5.0]), np.array([1, 0, 0, 1, 0], bool), np.array([3, 2])
    )
    assert pairs.rank.tolist() == [3, 1, 2, 1, 2]
    assert pairs.some(np.array([False, True])).rank.tolist() == [1, 2]


def chosen(fault, users=1_500, group=None, **more):
    prior = world(users)
    scores = fault(np.log(prior / (1 - prior)))
    return repairs.choose(repairs.Pairs.of(*users_of(scores, prior), group=group), **more)


GROUPS = np.arange(40) % 2


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (lambda s: s, "as it is"),
        (lambda s: s + 3.0, "offset"),
        (lambda s: 3.0 * s, "temperature"),
        (lambda s: 0.5 * s + 4.0, "Platt"),
        (lambda s: s + 2.0 * GROUPS, "by group"),
    ],
)
def test_validation_users_choose_the_plainest_repair_that_mends_the_fault(fault, name):
    found = chosen(fault, group=GROUPS)
    assert found.name == name
    assert name in found.why and found.why.endswith(".") and "\n" not in found.why
    row = found.table.loc[name]
    assert row["sum_low"] <= row["sum"] <= row["sum_high"] and row["sum"] == pytest.approx(
        1, abs=0.05
    )
    if name != "as it is":
        assert 0 < row["low"] < row["better"] < row["high"]
    assert (found.table.loc[["offset", "Platt", "beta"], "moved"] == 0).all()


def test_the_first_items_alone_may_judge():
    prior = world(12_000)
    scores = np.log(prior / (1 - prior))
    best = scores.max(axis=1, keepdims=True)  # rank 1 is too timid, and nothing else
    np.put_along_axis(scores, scores.argmax(1)[:, None], best - 0.8, 1)
    pairs = repairs.Pairs.of(*users_of(scores, prior))
    found = repairs.choose(pairs, top=1)
    first, row = pairs.rank == 1, found.table.loc["as it is"]
    literal = -np.where(pairs.hit, np.log(expit(pairs.scores)), np.log(expit(-pairs.scores)))
    assert row["log_loss"] == pytest.approx(literal[first].sum() / 12_000)
    assert row["sum"] == pytest.approx(expit(pairs.scores[first]).sum() / 12_000)
    assert "first 1 item, " in found.why and found.table.loc[found.name, "low"] > 0


def test_no_repair_is_judged_by_users_that_it_was_fitted_to():
    prior = world(60)
    scores, hit = users_of(np.log(prior / (1 - prior)), prior)
    names = np.arange(hit.size)  # each pair a group of its own: learnt by heart
    pairs = repairs.Pairs.of(scores, hit, group=names.reshape(hit.shape))
    found = repairs.choose(pairs)
    heart = found.repairs["isotonic"](pairs.scores)
    apart = found.table.loc["isotonic"]
    within = calibration.expected_calibration_error(heart, pairs.hit)
    assert within < 1e-6 < apart["ece"] / 10
    assert found.name != "isotonic"


def test_a_repair_that_cannot_be_fitted_says_why_and_is_not_chosen():
    scores = np.tile([1.0, 0.0, -1.0], (40, 1))
    hit = np.tile([True, False, False], (40, 1))
    found = repairs.choose(repairs.Pairs.of(scores, hit))
    assert "not identifiable" in found.table.loc["Platt", "undefined"]
    assert found.table["undefined"].isna()[found.name]


M = np.arange(9.0).reshape(3, 3) % 4
EXAMPLES = [
    repairs.Logistic(1 / 3, -8.123456789012345),
    repairs.Beta(0.1, 2 / 3, -1e-300),
    repairs.Steps((-1.5, 0.1 + 0.2), (0.0, 1e-17)),
    repairs.ByRank((1, 2), tuple(repairs.Logistic(x, -x) for x in (0.1, 0.7, 1.1))),
    repairs.ByGroup(("rare", "common"), (-0.1, 0.7), 1 / 7, ("rare", "rare", "common")),
    repairs.ByGroup((1, 2), (-0.1, 0.7), 1 / 7),
    repairs.Inverse(0.075, 0.3, True),
]


@pytest.mark.parametrize("repair", EXAMPLES)
def test_a_repair_is_saved_and_loaded_to_the_last_bit(repair, tmp_path):
    loaded = repairs.load(repairs.save(repair, tmp_path / "repair.json"))
    assert loaded == repair and type(loaded) is type(repair)
    given = {"rank": [1, 2, 3], "group": [1, 2, 1]}
    if isinstance(repair, repairs.ByGroup) and repair.items:
        given["group"] = None
    scores = np.array([-40.0, 0.3, 7.0])
    assert (loaded(scores, **given) == repair(scores, **given)).all()


GROUPED = {"kind": "by group", "names": ["a", "b"], "shifts": [0, 1], "common": 0, "items": ["a"]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told[:-9],
        lambda told: told.replace(b'"slope": 0.5', b'"slope": NaN'),
        lambda told: told.replace(b'"slope": 0.5', b'"slope": "steep"'),
        lambda told: told.replace(b'"slope"', b'"slop"'),
        lambda told: told.replace(b"logistic", b"magic"),
        lambda told: told.replace(b'"logistic"', b'["logistic"]'),
        lambda told: told.replace(b'repair": 1', b'repair": 2'),
        lambda told: b"[]",
        lambda told: b"\xff\xfe",
        lambda told: told.replace(b"0.5", b"1" + b"0" * 400),
        *(lambda told, kind=kind: json.dumps({"gsas-lab repair": 1} | kind).encode() for kind in (
            GROUPED | {"names": "ab"}, GROUPED | {"names": [float("nan"), "a"]},
            GROUPED | {"items": "aba"}, GROUPED | {"items": [["a"], ["b"]]},
            GROUPED | {"names": {"a": 1, "b": 2}},
            {"kind": "inverse", "alpha": 0.1, "beta": 0.3, "collisions": "no"},
            {"kind": "steps", "scores": [0, 1], "prob": [0.9, 0.1]},
            {"kind": "by rank", "last": [1.5], "lines": [{"slope": 1, "shift": 0}] * 2},
        )),
        lambda told: json.dumps({"gsas-lab repair": 1, "kind": "by rank", "last": [2, 1],
                                 "lines": [{"slope": 1, "shift": 0}] * 3}).encode(),
        lambda told: json.dumps({"gsas-lab repair": 1, "kind": "steps", "scores": [1, 0],
                                 "prob": [0.1, 0.2]}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_repair_is_refused_in_one_sentence(damage, tmp_path):
    path = repairs.save(repairs.Logistic(0.5, -1.0), tmp_path / "repair.json")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        repairs.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: EXAMPLES[3]([0.0]), "goes by rank"),
        (lambda: EXAMPLES[4]([0.0]), "goes by group"),
        (lambda: EXAMPLES[4]([0.0], group=["rare", "common"]), "shape"),
        (lambda: repairs.by_group(repairs.Pairs.of([[0.0, 1.0]], [[True, False]])), "each pair's"),
        (lambda: repairs.Pairs.of([0.0], [True]), "users, n_items"),
        (lambda: repairs.Pairs(np.zeros(2), np.array([True, False]), np.array([3])), "3 pairs of 2"),
        (lambda: repairs.choose(repairs.Pairs.of([[1, 0]], [[1, 0]])), "One user cannot judge"),
        (lambda: repairs.save(lambda s: s, "x.json"), "no repair of this library"),
        (lambda: repairs.save(EXAMPLES[0], None), "names no file"),
        (lambda: EXAMPLES[0]([np.nan]), "no probability for NaN"),
        (lambda: EXAMPLES[0](["steep"]), "array of real numbers"),
        (lambda: EXAMPLES[3]([0.0], rank=[0]), "count from 1, not from 0"),
        (lambda: repairs.ByGroup((np.datetime64("2020"),), (0.0,), 0.0), "text or finite numbers"),
        (lambda: repairs.platt([0.1, 0.2], [1, 2]), "ranks do not fit here"),
        (lambda: repairs.offset([0.1, 0.2], [1, np.nan]), "hit must be True or False"),
        (lambda: repairs.offset([1e17] * 3, [1, 0, 0]), "no shift meets the hits"),
        (lambda: repairs.Pairs.of(M, M == 0, np.ones(3, bool)), "candidates must have the shape"),
        (lambda: repairs.Pairs.of(M, M == 0, M != 0), "Row 0 of hit has a hit outside candidates"),
        (lambda: repairs.Pairs.of(M, M == 0, group=["a", "b"]), "labels of shape"),
        (lambda: repairs.Pairs.of(M, M == 0, group=["a", np.nan, "b"]), "is missing"),
        (lambda: repairs.compare({}, M, M == 0, M != 0), "outside candidates"),
        (lambda: repairs.compare({}, M, M == 0, top=0), "top must be 1"),
        (lambda: repairs.choose(repairs.Pairs.of(M, M == 0), top=0), "top must be 1"),
        (lambda: repairs.choose(repairs.Pairs.of(M, M == 0), folds=1), "folds must be 2"),
        (lambda: repairs.Pairs(M[0], M[0] == 0, np.array([4, -1])), "0 or more"),
        (lambda: repairs.Pairs(M[0], M[0] == 0, np.array([3]), weight=M[0] * np.nan), "weight"),
        (lambda: repairs.popularity_groups([1, np.nan]), "each item's count"),
        (lambda: repairs.popularity_groups([1, 2], 1), "parts must be 2"),
    ],
)  # fmt: skip
def test_a_repair_that_lacks_what_it_needs_says_so(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_no_repair_can_mend_is_told_and_a_known_one_that_fails_is_not_chosen():
    scores = np.where(np.eye(4, dtype=bool), -1000.0, 1000.0) + np.arange(4) / 8
    pairs = repairs.Pairs.of(np.tile(scores, (3, 1)), np.tile(np.eye(4, dtype=bool), (3, 1)))
    chosen = repairs.choose(pairs)
    assert "probability 0 to what came" in chosen.table.loc["as it is", "undefined"]
    assert chosen.name != "as it is"
    broken = {"mine": lambda s: np.full(len(s), np.nan), "other": lambda s: 0.5}
    found = repairs.choose(repairs.Pairs.of(M, M == 0), broken)
    for name in broken:
        assert "does not give each pair a probability" in found.table.loc[name, "undefined"]
        assert name != found.name


def test_an_infinite_logit_has_a_probability_whatever_the_slope():
    for repair in (repairs.Logistic(0.0), repairs.Beta(1.0, 0.0, 0.0), repairs.Beta(0.0, 1.0, 0.0)):
        assert np.isin(repair([-np.inf, np.inf]), (0.0, 0.5, 1.0)).all()


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a device or a pipe"):
        repairs.save(EXAMPLES[0], tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("loss", ["bce", "softmax", "bpr"])
def test_a_run_recommends_and_is_diagnosed_by_any_of_its_repairs(small_world, loss):
    run = runs.train(replace(small_world, loss=loss, epochs=1))
    choice = evidence.choose_repair(run)
    assert {"offset", "beta", "by group", "rank-wise", "isotonic"} <= set(choice.repairs)
    assert ("analytic" in choice.repairs) == (loss == "bce")
    history = list(run.data.split.test.histories[0])
    plain = run.recommend(history, n=60)
    held = evidence.pairs(run, run.data.split.test.first(1))
    for repair in choice.repairs.values():
        found = run.recommend(history, n=60, repair=repair)
        assert (
            (found["item"] == plain["item"]).all()
            and (found["raw"] == plain["raw"]).all()
            or (
                loss == "bpr"  # whose raw is NaN
            )
        )
        prob = held.repaired(repair)  # of all items in their order: nothing is excluded here
        np.testing.assert_allclose(found["probability"], prob[found["item"] - 1], rtol=1e-9)
        told = diagnosis.diagnose_run(run, repair=repair)
        assert told.expected == pytest.approx(
            evidence.pairs(run, run.data.split.test).repaired(repair).sum() / 300, rel=1e-6
        )
    if loss == "bce":
        raw, mended = (
            diagnosis.diagnose_run(run),
            diagnosis.diagnose_run(run, repair=choice.repairs["offset"]),
        )
        assert abs(mended.offset) < 1e-6 < 0.5 < abs(raw.offset)


def test_matrices_and_tables_are_diagnosed_by_a_repair():
    prior = world()
    scores, hit = users_of(logit(prior) + 3.0, prior)
    pairs = repairs.Pairs.of(scores, hit)
    repair = repairs.offset(pairs.scores, pairs.hit)
    assert diagnosis.diagnose(scores, hit).verdict.startswith("overconfident")
    assert diagnosis.diagnose(scores, hit, repair=repair).verdict.startswith("calibrated")
    by_rank = diagnosis.diagnose(scores, hit, repair=repairs.rank_wise(pairs))
    assert by_rank.expected == pytest.approx(1, abs=0.1)
    short = repairs.ByGroup(("a",), (0.0,), 0.0, ("a",) * 3)
    with pytest.raises(InputError, match="groups of 3 items"):
        diagnosis.diagnose(scores, hit, repair=short)


def test_the_commands_repair_recommend_and_diagnose_hand_a_repair_on(small_world, tmp_path, capsys):
    run = runs.train(replace(small_world, epochs=1))
    path = tmp_path / "repair.json"
    assert main(["repair", str(run.folder), str(path), "--by", "Platt"]) == 0
    assert str(path) in capsys.readouterr().out
    repair = repairs.load(path)
    assert repair == evidence.choose_repair(run).repairs["Platt"]
    assert main(["recommend", str(run.folder), "--n", "2", "3", "--repair", str(path), "7"]) == 0
    said = capsys.readouterr().out
    assert said.strip() == run.recommend([3, 7], 2, repair=repair).to_string(index=False).strip()
    prior = world(50)
    scores, hit = users_of(logit(prior), prior)
    np.savez(tmp_path / "scores.npz", scores=scores, hit=hit)
    assert main(["diagnose", str(tmp_path / "scores.npz"), "--repair", str(path)]) == 0
    assert str(diagnosis.diagnose(scores, hit, repair=repair)) in capsys.readouterr().out
    assert main(["repair", str(run.folder), str(path), "--by", "magic"]) == 2
    assert re.search("'magic': .* offset", capsys.readouterr().err)


def test_popularity_groups_share_the_interactions():
    counts = np.random.default_rng(0).zipf(1.5, 2_000).clip(max=500)
    names = repairs.popularity_groups(counts)
    share = [counts[names == name].sum() / counts.sum() for name in sorted(set(names))]
    assert len(share) == 5 and max(share) < 0.25 and min(share) > 0.15
    assert counts[names == "1 most taken"].min() >= counts[names == "5 least taken"].max()
    assert set(repairs.popularity_groups(np.zeros(3))) == {"1 most taken"}
