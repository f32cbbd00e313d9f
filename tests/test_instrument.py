"""The instrument: outside oracles, literal references, coverage by simulation, one sentence each."""

import warnings

import numpy as np
import pandas as pd
import pytest
import reference
from scipy.special import expit, logit

from gsas_lab import calibration, instrument
from gsas_lab.errors import InputError


def pairs(n=20_000, seed=0):
    """Probabilities of slope 1.6 too low: some too high, some too low, right on average at 0.5."""
    rng = np.random.default_rng(seed)
    prob = rng.beta(0.8, 2, n)
    return prob, rng.random(n) < 1 / (1 + ((1 - prob) / prob) ** 1.6)


def one(measure, gaps):
    return float(measure(gaps[:, None])[0])


def smooth_error(of, width, on_logits=False):
    """Smooth ECE of one given width of the kernel."""
    return float(np.abs(instrument._kernel(of, width, on_logits) @ of.gap).sum())


# --- values of other packages, computed once for these very pairs ---------------------------------


def test_smooth_ece_is_relplots():
    # relplot 1.0.3: smECE, with its bandwidth, and smECE_sigma. It counts on grids, 1/1024 for the
    # bandwidth, and lies 0.1 % below the literal integral; ours is nearer to that.
    prob, hit = pairs()
    of = instrument.cells(prob, hit, resamples=0)
    assert one(instrument.smooth(of), of.gap) == pytest.approx(0.06175984265420373, rel=3e-3)
    stored = {0.02: 0.06390038497542702, 0.05: 0.062394998262874854, 0.1: 0.059191372765060014}
    for width, value in stored.items():
        assert smooth_error(of, width) == pytest.approx(value, rel=3e-3)


def test_smooth_ece_on_logits_is_relplots_at_four_times_the_bandwidth():
    # relplot 1.0.3 with config.use_logit_scaling: its kernel is four times as wide as it is called.
    prob, hit = pairs()
    of = instrument.cells(np.clip(prob, 0.01, 0.99), hit, resamples=0)
    stored = {0.05: 0.06255166852176426, 0.1: 0.059148137345588166, 0.25: 0.047896562806266516}
    for width, value in stored.items():
        assert smooth_error(of, 4 * width, True) == pytest.approx(value, rel=0.02)


def test_scores_are_scikit_learns_and_ece_is_netcals():
    # scikit-learn 1.9.1 brier_score_loss and log_loss.
    prob, hit = pairs()
    assert calibration.brier(prob, hit) == pytest.approx(0.11602544881324879, rel=1e-12)
    assert calibration.log_loss(prob, hit) == pytest.approx(0.3699671322534654, rel=1e-12)
    # netcal 1.4.0 ECE(10), ECE(20): equal widths, which for evenly spread p̂ are equal masses.
    rng = np.random.default_rng(1)
    even = rng.permutation((np.arange(20_000) + 0.5) / 20_000)
    hits = rng.random(20_000) < 1 / (1 + ((1 - even) / even) ** 1.6)
    for bins, value in {10: 0.06785, 20: 0.06785}.items():
        assert calibration.expected_calibration_error(even, hits, bins) == pytest.approx(value)
        of = instrument.cells(even, hits, bins=bins, resamples=0)
        assert one(instrument.binned(of), of.gap) == pytest.approx(value)


# --- literal references --------------------------------------------------------------------------


@pytest.mark.parametrize("on_logits, widths", [(False, (0.01, 0.06, 0.3)), (True, (0.1, 0.5, 2.0))])
def test_smooth_ece_is_the_literal_integral(on_logits, widths):
    prob, hit = pairs(3_000)
    of = instrument.cells(prob, hit, resamples=0)
    for width in widths:
        literal = reference.smooth_ece(prob, hit, width, on_logits)
        assert smooth_error(of, width, on_logits) == pytest.approx(literal, rel=3e-3)


def test_the_bandwidth_is_the_error_that_it_gives():
    prob, hit = pairs(5_000)
    of = instrument.cells(prob, hit, resamples=0)
    value = one(instrument.smooth(of), of.gap)
    assert smooth_error(of, value) == pytest.approx(value, rel=5e-3)
    shift = float((of.share * of.prob * (1 - of.prob)).sum())
    value = one(instrument.smooth(of, on_logits=True), of.gap)
    assert smooth_error(of, value / shift, True) == pytest.approx(value, rel=5e-3)


def test_corp_is_the_reference_and_its_parts_add_up():
    prob, hit = pairs(400)
    prob = prob.round(2).clip(0.01, 0.99)  # with ties
    scores = {
        "Brier": lambda p, h: (p - h) ** 2,
        "log loss": lambda p, h: -np.log(p if h else 1 - p),
    }
    table = instrument.decomposition(prob, hit)
    of = instrument.cells(prob, hit, resamples=0)
    for name, score in scores.items():
        expected = reference.corp(prob, hit, score)
        for part, value in expected.items():
            assert table.loc[name, part] == pytest.approx(value, abs=1e-12), (name, part)
        row = table.loc[name]
        assert row["score"] == pytest.approx(
            row["miscalibration"] - row["discrimination"] + row["uncertainty"], abs=1e-14
        )
        assert (row[["miscalibration", "discrimination", "uncertainty"]] >= 0).all()
        cells = one(instrument.corp(of, log=name != "Brier"), of.gap)
        assert cells == pytest.approx(expected["miscalibration"], rel=1e-6)  # no cell holds two p̂


def test_the_corp_curve_is_monotone_and_its_band_holds_what_is_calibrated():
    rng = np.random.default_rng(0)
    prob = rng.beta(0.3, 6, (500, 40))
    inside = []
    for _ in range(10):
        curve = instrument.corp_curve(prob, rng.random(prob.shape) < prob, resamples=100)
        assert (np.diff(curve["observed"]) >= -1e-12).all()
        inside += [
            ((curve["low"] <= curve["observed"]) & (curve["observed"] <= curve["high"])).mean()
        ]
    assert 0.85 < np.mean(inside) < 0.99
    shifted = expit(logit(prob) + 0.7)
    curve = instrument.corp_curve(shifted, rng.random(prob.shape) < prob, resamples=200)
    wide = curve["predicted"] > 0.02
    assert (curve["observed"] < curve["low"])[wide].mean() > 0.9


def test_cells_keep_what_the_pairs_say():
    prob, hit = pairs(30_000)
    prob = prob.astype(np.float32)
    prob[:3000] = 1.0  # saturated
    of = instrument.cells(prob, hit, np.arange(30_000) // 30, resamples=50)
    assert one(instrument.binned(of), of.gap) == pytest.approx(
        calibration.expected_calibration_error(prob, hit), rel=1e-9
    )
    assert of.share.sum() == pytest.approx(1) and of.share @ of.prob == pytest.approx(
        prob.mean(dtype=float)
    )
    assert of.gap.sum() == pytest.approx(hit.mean() - prob.mean(dtype=float))
    lower, upper = of.edges[of.place], of.edges[of.place + 1]
    assert ((of.prob >= lower - 1e-12) & (of.prob <= upper + 1e-12)).all()
    assert (np.diff(of.edges) <= 1 / 512 + 1e-12).all()


def test_noise_is_that_of_resampling_users_one_by_one():
    prob, hit = pairs(4_000)
    user = np.random.default_rng(2).integers(0, 80, 4_000)
    of = instrument.cells(prob, hit, user, resamples=4_000)
    sums = [np.add.reduceat(each, of.starts) for each in (of.noise,)][0]
    literal = []
    rng = np.random.default_rng(5)
    bounds = of.edges[of.place[of.starts]]
    code = np.searchsorted(bounds, prob, side="right") - 1
    for _ in range(1500):
        weight = np.bincount(rng.integers(80, size=80), minlength=80)[user]
        literal.append(np.bincount(code, weight * (hit - prob), len(bounds)) / weight.sum())
    ratio = sums.std(axis=1) / np.std(literal, axis=0)
    widened = 1.99045 / 1.959964 * np.sqrt(80 / 79)
    np.testing.assert_allclose(ratio, widened, rtol=0.1)
    assert ratio.mean() == pytest.approx(widened, rel=0.02)


# --- by rank -------------------------------------------------------------------------------------


def test_ece_at_n_and_its_rank_discount_by_a_literal_loop():
    rng = np.random.default_rng(3)
    prob = rng.random((60, 30))
    hit = rng.random((60, 30)) < prob**2
    at, weight = [], []
    for row in range(60):
        for place, column in enumerate(sorted(range(30), key=lambda c, r=row: -prob[r, c])[:5]):
            at.append((row, column))
            weight.append(1 / np.log2(2 + place))
    rows, columns = np.array(at).T
    weight = np.array(weight)
    said, done = prob[rows, columns], hit[rows, columns]
    parts = np.array_split(np.argsort(said), 20)
    plain = sum(abs((done - said)[i].sum()) for i in parts) / len(said)
    discounted = sum(abs((weight * (done - said))[i].sum()) for i in parts) / weight.sum()
    user = np.repeat(np.arange(60), 30)
    mixed = rng.permutation(1800)
    for table in (
        instrument.measures(prob, hit, top=5, resamples=0),
        instrument.measures(
            prob.ravel()[mixed], hit.ravel()[mixed], user[mixed], top=5, resamples=0
        ),
    ):
        assert table.loc["ECE@5", "value"] == pytest.approx(plain)
        assert table.loc["RDECE@5", "value"] == pytest.approx(discounted)
    ranks = (-prob).argsort(axis=1).argsort(axis=1) + 1
    given = instrument.measures(prob, hit, rank=ranks, top=5, resamples=0)
    assert given.loc["RDECE@5", "value"] == pytest.approx(discounted)


def test_equal_probabilities_rank_in_their_order_and_short_lists_end():
    prob = np.full((3, 4), 0.5)
    hit = np.zeros((3, 4), bool)
    hit[:, 1] = True
    curve = instrument.by_rank(prob, hit, top=10)
    assert curve["rank"].tolist() == [1, 2, 3, 4] and curve["observed"].tolist() == [0, 1, 0, 0]
    flat = instrument.by_rank(prob.ravel(), hit.ravel(), np.repeat(np.arange(3), 4), top=10)
    pd.testing.assert_frame_equal(curve, flat)


# --- intervals -----------------------------------------------------------------------------------


def clicks(rng, prior):
    """(users, items): one click a user, drawn from prior."""
    place = (prior.cumsum(axis=1) < rng.random((len(prior), 1))).sum(axis=1).clip(0, 39)
    return np.arange(40) == place[:, None]


def planted(rng, users, fault):
    """Users with 40 items each; what they are told is off by `fault` of the logit and the place."""
    prior = rng.dirichlet(np.full(40, 0.3), users).clip(1e-6)
    prior /= prior.sum(axis=1, keepdims=True)
    return prior, expit(fault(logit(prior.clip(0, 1 - 1e-9)))), clicks(rng, prior)


FAULTS = {
    "none": lambda s: s,
    "shift": lambda s: s + 0.5,
    "slope": lambda s: 0.8 * s - 0.6,
    "top": lambda s: s + 0.6 * (s > -1),
    "one bin": lambda s: s + 0.7 * ((s > -3.1) & (s < -2.5)),  # the 17th of 20
}


@pytest.mark.parametrize("fault", FAULTS)
def test_intervals_cover_what_users_without_end_would_show(fault):
    """Few simulations, of the ECE alone; the log has the figures of many and of every measure."""
    rng = np.random.default_rng(11)
    prior, said, hit = planted(rng, 20_000, FAULTS[fault])
    endless = instrument.cells(said, hit, resamples=0, truth=prior)
    truth = one(instrument.binned(endless), endless.truth)
    inside = []
    for seed in range(150):
        some = rng.integers(len(said), size=400)
        of = instrument.cells(said[some], clicks(rng, prior[some]), resamples=100, seed=seed)
        row = instrument.interval(instrument.binned(of), of)
        inside.append(row["low"] - 1e-12 <= truth <= row["high"] + 1e-12)
    assert 0.90 <= np.mean(inside)  # 95 % within three standard errors of 150 simulations


@pytest.mark.parametrize(
    "gaps",
    [
        np.zeros(20),
        np.ones(20),
        np.full(20, 2.0),
        2.0 * (-1) ** np.arange(20),
        10 * 0.7 ** np.arange(20),
    ],
)
def test_intervals_cover_small_errors_in_every_bin_and_few_large_ones(gaps):
    """Gaps in standard errors: noise folds back what it cannot tell from none."""
    rng = np.random.default_rng(13)
    size, missed = np.full(20, 1 / 20), []
    for _ in range(1000):
        noise, gap = rng.standard_normal((20, 200)), gaps + rng.standard_normal(20)
        of = instrument.Cells(
            np.linspace(0, 1, 21), np.arange(20), size, size, size, gap * 1e-3, np.arange(20),
            noise * 1e-3, rng.standard_normal((20, 200)) * 1e-3, None,
        )  # fmt: skip
        row = instrument.interval(instrument.binned(of), of)
        missed.append(not row["low"] <= np.abs(gaps).sum() * 1e-3 <= row["high"])
    assert np.mean(missed) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_smoothed_errors_that_cancel_do_not_pull_the_upper_end_down():
    """Equal errors of both signs lie beside each other and are smoothed away: MovieLens-1M had upper
    ends below the debiased value.
    """
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.full(200, 0.3), 600).clip(1e-7)
    prior /= prior.sum(axis=1, keepdims=True)
    place = (prior.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1).clip(0, 199)
    said = expit(1.2 * logit(prior) + 0.6)
    of = instrument.cells(said, np.arange(200) == place[:, None], resamples=100, truth=prior)
    measure = instrument.smooth(of)
    row, lift = instrument.interval(measure, of), measure.lift(of.noise)
    ends = [
        instrument._end(measure, at, lift, row["value"], 0.025) for at in of.completed(of.noise)
    ]
    along = instrument._end(measure, of.gap, lift, row["value"], 0.025)
    assert row["high"] == max(along, ends[1]) > 1.01 * ends[1]
    assert row["low"] <= row["truth"] <= row["high"]


def test_the_intervals_of_all_measures_cover_the_truth():
    rng = np.random.default_rng(12)
    inside = []
    for seed in range(10):
        prior, said, hit = planted(rng, 400, FAULTS["slope"])
        table = instrument.measures(said, hit, resamples=80, truth=prior, seed=seed)
        table = table.drop("distance to truth")
        inside.append((table["low"] <= table["truth"]) & (table["truth"] <= table["high"]))
    assert np.mean(inside) > 0.85 and np.mean(inside, axis=0).min() >= 0.6


def test_chance_is_what_redrawn_hits_give_and_is_small_beside_a_fault():
    rng = np.random.default_rng(4)
    _, said, hit = planted(rng, 500, FAULTS["shift"])
    table = instrument.measures(said, hit, resamples=300)
    again = [
        calibration.expected_calibration_error(said, rng.random(said.shape) < said)
        for _ in range(100)
    ]
    assert table.loc["ECE", "chance"] == pytest.approx(np.mean(again), rel=0.08)
    assert table["detected"].all()
    assert (table["chance"].abs() < table["value"].abs() / 2).all()


def test_debiased_ece_of_a_calibrated_model_is_nearer_to_0():
    rng = np.random.default_rng(6)
    values = []
    for seed in range(20):
        _, said, hit = planted(rng, 300, FAULTS["none"])
        of = instrument.cells(said, hit, resamples=100, seed=seed)
        values.append(instrument.interval(instrument.binned(of), of))
    table = pd.DataFrame(values)
    assert table["debiased"].mean() < 0.7 * table["value"].mean()
    assert (table["low"] == 0).mean() >= 0.85


def test_the_same_seed_gives_the_same_table_and_more_than_ten_thousand_users_are_joined():
    rng = np.random.default_rng(7)
    said = rng.beta(0.2, 5, (12_000, 5))
    hit = rng.random(said.shape) < said
    first = instrument.measures(said, hit, resamples=50)
    pd.testing.assert_frame_equal(first, instrument.measures(said, hit, resamples=50))
    assert first["low"].notna().all() and not first.loc["ECE", "detected"]


# --- by group ------------------------------------------------------------------------------------


def test_groups_that_cancel_are_named_and_the_average_is_not():
    rng = np.random.default_rng(8)
    prior, said, hit = planted(rng, 2_000, FAULTS["none"])
    genre = np.array(["Noir", "Opera", "Poetry", "Quest"])[np.arange(40) % 4]
    lean = np.where(genre == "Noir", 1.6, np.where(genre == "Opera", 1 / 1.6, 1.0))
    odds = said / (1 - said) * lean
    said = odds / (1 + odds)
    table = instrument.by_group(said, hit, {"genre": genre}, truth=prior)
    assert table["group"].tolist() == ["all pairs", "Noir", "Opera", "Poetry", "Quest"]
    verdict = dict(zip(table["group"], table["verdict"], strict=True))
    assert verdict["Noir"] == "overconfident" and verdict["Opera"] == "underconfident"
    assert verdict["Poetry"] == verdict["Quest"] == ""
    assert ((table["low"] <= table["true_ratio"]) & (table["true_ratio"] <= table["high"])).all()
    sentence = instrument.hidden(table)
    assert "Opera" in sentence and "Poetry" not in sentence
    row = table.set_index("group").loc["Noir"]
    came = f"{row['ratio'] * row['hits']:,.0f} promised, {row['hits']} came: {row['ratio']:.2f}"
    assert f"Noir (genre, {came}, {row['low']:.2f} to {row['high']:.2f})" in sentence
    inside = np.broadcast_to(genre == "Noir", hit.shape)
    assert row["ratio"] == pytest.approx(said[inside].sum() / hit[inside].sum())


def test_what_errs_by_less_than_asked_counts_as_calibrated():
    table = pd.DataFrame(
        {
            "grouping": ["all", "own", "own"],
            "group": ["all pairs", "a", "b"],
            "hits": [900, 400, 500],
        }
        | {"predicted": 0.1, "ratio": [1.02, 1.08, 0.97], "low": [1.01, 1.05, 0.95]}
        | {"high": [1.03, 1.11, 0.99], "p_holm": 1e-4}
        | {"verdict": ["overconfident", "overconfident", "underconfident"]}
    )
    strict = instrument.hidden(table)
    assert strict.startswith(
        "Promised / observed on average 1.02 (1.01 to 1.03), and not for a (own"
    )
    assert "485 promised, 500 came: 0.97, 0.95 to 0.99" in strict
    some = instrument.hidden(table, within=0.05)
    assert some.startswith("Calibrated on average to within 5%, promised / observed 1.02 (1.01 to")
    assert "but not for a (own, 432 promised, 400 came: 1.08, 1.05 to 1.11)." in some
    assert instrument.hidden(table, within=0.1).endswith("differ from calibrated by more.")


def test_intervals_of_groups_cover_their_true_ratio():
    rng = np.random.default_rng(9)
    covered, few = [], []
    for _ in range(60):
        prior, said, hit = planted(rng, 300, FAULTS["shift"])
        table = instrument.by_group(said, hit, {"item": np.arange(40) % 8}, truth=prior)
        inside = (table["low"] <= table["true_ratio"]) & (table["true_ratio"] <= table["high"])
        covered += inside.tolist()
        few += (table["hits"] < 30).tolist()
    assert any(few) and not all(few)
    assert 0.93 <= np.mean(covered) <= 0.985


def test_no_group_of_a_calibrated_model_is_called_wrong_oftener_than_in_5_of_100_populations():
    rng = np.random.default_rng(14)
    cried = []
    for _ in range(150):
        _, said, hit = planted(rng, 500, FAULTS["none"])
        groupings = {"item": np.arange(40) % 20, "rank": instrument.rank_groups(said, (1, 5, 10))}
        tables = [instrument.by_group(said, hit, {name: of}) for name, of in groupings.items()]
        cried.append([(table["verdict"][1:] != "").any() for table in tables])
    assert (np.abs(np.mean(cried, axis=0) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 150)).all()


def test_groups_of_users_items_ranks_and_sizes():
    prob = np.array([[0.3, 0.2, 0.1], [0.1, 0.6, 0.2]])
    hit = np.array([[True, False, False], [False, True, False]])
    labels = {
        "user": np.array([["new"], ["old"]]),
        "popularity": instrument.quantile_groups([1, 2, 50], 2),
        "rank": instrument.rank_groups(prob, (1, 2)),
    }
    table = instrument.by_group(prob, hit, labels).set_index(["grouping", "group"])
    assert table.loc[("user", "new"), "pairs"] == 3
    assert table.loc[("popularity", "1"), "pairs"] == 2
    assert table.loc[("rank", "rank 1"), "hits"] == 2
    assert table.loc[("rank", "ranks beyond 2"), "predicted"] == pytest.approx(0.1)


def test_groups_come_in_the_order_of_their_numbers_and_categories_in_their_own():
    prob, hit = np.full((6, 60), 1 / 60), np.zeros((6, 60), bool)
    hit[:, 0] = True
    sizes = np.array([3, 9, 9, 40, 150, 2000])
    labels = {
        "activity": instrument.quantile_groups(sizes)[:, None],
        "rank": instrument.rank_groups(prob),
        "lean": np.where(np.arange(60) % 2, -1.5, -12.0),
        "own": pd.Categorical(["mid", "high", "low"] * 20, ["low", "mid", "high"]),
    }
    table = instrument.by_group(prob, hit, labels)
    assert table["group"].tolist() == [
        "all pairs", "3", "9", "40", "150 to 2000",
        "rank 1", "ranks 2 to 5", "ranks 6 to 10", "ranks 11 to 50", "ranks beyond 50",
        "-12.0", "-1.5", "low", "mid", "high",
    ]  # fmt: skip
    assert table.set_index("group").loc["low", "pairs"] == 6 * 20
    assert table.set_index("group").loc["-12.0", "pairs"] == 6 * 30


def test_a_group_without_hits_has_a_sentence_and_can_still_be_found_wrong():
    rng = np.random.default_rng(10)
    prior, said, hit = planted(rng, 500, FAULTS["none"])
    never = np.arange(40) == 7
    hit[:, 7] = False
    table = instrument.by_group(said, hit, {"item": np.where(never, "seven", "others")})
    row = table.set_index("group").loc["seven"]
    assert row["ratio"] == np.inf and row["note"].startswith("the ratio is not defined, because")
    assert row["verdict"] == "overconfident" and 1 < row["low"] < np.inf
    assert "promised and never hit" in instrument.hidden(table)


# --- bad input -----------------------------------------------------------------------------------

P, H = np.array([[0.2, 0.4], [0.1, 0.9]]), np.array([[False, True], [False, True]])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: instrument.measures(P + 1, H), "between 0 and 1"),
        (lambda: instrument.measures(P * np.nan, H), "between nan and nan"),
        (lambda: instrument.measures(P, H[:1]), "one shape"),
        (lambda: instrument.measures(P, H & False), "not defined, because none of the 4 pairs"),
        (lambda: instrument.measures(P, H | True), "not defined, because all of the 4 pairs"),
        (lambda: instrument.measures(P, H, user=[1, 2]), "user must have the shape"),
        (lambda: instrument.measures(P, H, user=[[1, 1], [None, 2]]), "user is missing"),
        (lambda: instrument.measures(P, H, truth=[1, 2]), "truth must have the shape"),
        (lambda: instrument.measures(P, H, truth=P + 1), "truth must lie between"),
        (lambda: instrument.measures(P, H, truth=P * np.nan), "truth must be a finite"),
        (lambda: instrument.measures(P, H, rank=P * 0), "Ranks count from 1"),
        (lambda: instrument.measures(P, H, top=0), "top must be 1"),
        (lambda: instrument.measures(P, H, bins=0), "bins must be 1"),
        (lambda: instrument.cells(P, H, weight=P * 0), "weight must be"),
        (lambda: instrument.by_rank(P.ravel(), H.ravel()), "needs users, or ranks"),
        (lambda: instrument.by_group(P, H, {"own": ["a", "b", "c"]}), r"labels of shape \(3,\)"),
        (lambda: instrument.by_group(P, H, {"own": ["a", None]}), "own: the label of some"),
        (lambda: instrument.quantile_groups([]), "a finite number for each"),
        (lambda: instrument.rank_groups([0.5]), r"\(users, n_items\)"),
        (lambda: instrument.decomposition(P + 1, H), "between 0 and 1"),
        (lambda: instrument.measures([[0.2], [0.1, 0.2]], H), "of one shape"),
        (lambda: instrument.measures(P, H, top=2.5), "top must be 1"),
        (lambda: instrument.measures(P, H, bins=np.nan), "bins must be 1"),
        (lambda: instrument.measures(P, H, resamples=-1), "resamples must be 0"),
        (lambda: instrument.measures(P, H, seed=-1), "seed must be 0"),
        (
            lambda: instrument.measures(P, H, truth=[["a", "b"]] * 2),
            "truth must be an array of real",
        ),
        (lambda: instrument.measures(P, H, user=[["a", np.nan]] * 2), "user is missing"),
        (
            lambda: instrument.measures(P, H, user=[[[1], [2]], [[1], [2, 3]]]),
            "user must hold a name",
        ),
        (lambda: instrument.by_rank(P, H, rank=P * 0 + 1.5), "and are whole"),
        (
            lambda: instrument.by_rank(P, H, rank=P * 0 + 99),
            "No pair stands at one of the first 20",
        ),
        (lambda: instrument.by_rank(P, H, user=[1, 2]), "user must name one for each"),
        (lambda: instrument.by_group(P, H, {"own": ["a", np.nan]}), "own: the label of some"),
        (lambda: instrument.by_group(P, H, {"own": [["a"], ["b", "c"]]}), "own must hold a name"),
        (lambda: instrument.by_group(P, H, ["own"]), "groups must name each grouping"),
        (lambda: instrument.quantile_groups(["a", "b"]), "values must be an array of real numbers"),
        (lambda: instrument.quantile_groups([1, 2], 0), "parts must be 1"),
        (lambda: instrument.rank_groups(P * np.nan), "no NaN"),
    ],
)
def test_a_mistake_is_one_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_is_not_defined_says_why():
    rng = np.random.default_rng(12)
    prob = rng.random((8, 30))
    hit = rng.random((8, 30)) < prob
    few = instrument.measures(prob, hit, resamples=20)
    assert few.loc["ECE", "note"] == "no interval, because 8 users are fewer than 20 bins"
    assert np.isnan(few.loc["ECE", "low"]) and few.loc["ECE", "value"] > 0
    flat = instrument.measures(prob.ravel(), hit.ravel(), resamples=20)
    assert flat.loc["ECE", "note"] == "no interval, because users are not given"
    assert flat.loc["ECE@10", "note"].startswith("not defined, because neither users nor ranks")
    prob[0, 0], hit[0, 0] = 1.0, False
    certain = instrument.measures(prob, hit, resamples=0).loc["log loss miscalibration"]
    assert certain["value"] == np.inf and certain["note"].startswith("infinite, because")
    parts = instrument.decomposition(prob, np.zeros_like(hit))
    assert parts["note"].str.startswith("discrimination is not defined, because").all()
    assert parts["discrimination"].isna().all()
    for table in (few, flat):
        undefined = table["value"].isna() | table["low"].isna()
        assert (table["note"][undefined] != "").all()


def test_a_sentence_on_groups_never_reads_calibrated_where_nothing_is_defined():
    prob, hit = np.full((30, 4), 0.1), np.zeros((30, 4), bool)
    nothing = "Promised / observed is not defined, because "
    for p, why in ((prob, "no pair is a hit."), (prob * 0, "nothing was promised.")):
        told = instrument.hidden(instrument.by_group(p, hit, {"item": np.arange(4)}))
        assert told == nothing + why
    prob[:, 1:], hit[:, 1] = 0.25, np.arange(30) < 8
    prob[:, 0], hit[:3, 0] = 0.0, True
    told = instrument.hidden(instrument.by_group(prob, hit, {"item": np.arange(4)}))
    assert "0 (item, hit and never promised)" in told and "never hit" in told


def test_groups_of_several_kinds_and_of_tables_have_names_in_their_order():
    def names(labels):
        return list(instrument.by_group(P, H, {"own": labels})["group"][1:])

    assert names(pd.Series([10, "a"], dtype=object)) == ["10", "a"]
    assert names(pd.Series(["b", 9], dtype=object)) == ["9", "b"]
    assert names(pd.Series(pd.Categorical(["rare", "much"], categories=["rare", "much"]))) == [
        "rare",
        "much",
    ]
    assert len(instrument.by_group(P, H, pd.DataFrame({"one": [1, 2], "two": [3, 3]}))) == 4


def test_measures_at_ranks_that_no_pair_has_are_not_defined():
    few = instrument.measures(P, H, rank=np.full(P.shape, 11), resamples=5)
    assert few.loc["ECE@10", "note"] == "not defined, because no pair has such a rank"
    one = instrument.measures(P[:1], H[:1], resamples=5)
    assert one.loc["ECE", "note"] == "no interval, because there is one user"


def test_nothing_warns_on_constant_extreme_or_tiny_input():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prob in (
            np.full((30, 4), 0.25),
            np.zeros((30, 4)),
            np.ones((30, 4)),
            np.eye(4)[[0] * 30],
        ):
            hit = np.arange(4) == np.arange(30)[:, None] % 4
            table = instrument.measures(prob, hit, resamples=20, bins=5)
            value, low, high = table.loc["ECE", ["value", "low", "high"]].astype(float)
            assert low <= value + 1e-9 and value - 1e-9 <= high < np.inf
            instrument.by_group(prob, hit, {"item": np.arange(4)})
            instrument.corp_curve(prob, hit, resamples=20)
