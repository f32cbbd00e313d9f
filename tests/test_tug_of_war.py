"""Ten scores under gBCE come to rest where the theorem says, drawn or expected."""

import numpy as np
import plotly.graph_objects as go
import pytest
from test_explorers import assert_same_data, inside

from gsas_lab import theory
from gsas_lab.errors import InputError
from gsas_lab.lessons import tug_of_war as tug


def test_uniform_rates_are_the_papers_and_those_by_popularity_are_what_is_drawn():
    prior = tug.priors(tug.WEIGHTS)
    np.testing.assert_allclose(tug.rates(prior, 3), theory.alpha(3, 10))
    rng, counts, chances = np.random.default_rng(0), np.zeros(10), np.zeros(10)
    for positive in rng.choice(10, 40_000, p=prior):
        rest = np.where(np.arange(10) == positive, 0, prior)
        counts += np.bincount(rng.choice(10, 2, p=rest / rest.sum()), minlength=10)
        chances += np.arange(10) != positive
    np.testing.assert_allclose(counts / chances, tug.rates(prior, 2, "by popularity"), rtol=0.06)


@pytest.mark.parametrize("sampler", tug.SAMPLERS)
@pytest.mark.parametrize(("k", "t"), [(1, 0.0), (9, 0.0), (9, 1.0), (2, 0.75)])
def test_the_expected_steps_end_at_the_fixed_point(k, t, sampler):
    said, rest = tug.paths(k, t, 60_000, expected=True, sampler=sampler)
    np.testing.assert_allclose(said[-1], rest, atol=0.004)
    assert (said[0] == 0.5).all()


def test_drawing_adds_noise_about_the_same_end_and_no_bias():
    """The mean over many trainings, not one of them."""
    ends = np.mean([tug.paths(1, 0.0, 4000, seed=seed)[0][-1] for seed in range(60)], axis=0)
    rest = tug.paths(1, 0.0, 1)[1]
    assert np.abs(ends - rest).max() < 0.03
    assert ends.sum() > 4  # overconfident, though nothing is wrong with the training


def test_with_t_one_the_items_rest_at_their_own_probability():
    np.testing.assert_allclose(tug.paths(4, 1.0, 1)[1], tug.priors(tug.WEIGHTS))


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 4 5 6 7 8 9 x", "0 " * 10, "nan " * 10])
def test_what_is_no_ten_shares_is_told(text):
    with pytest.raises(InputError, match="ten numbers"):
        tug.priors(text)


def test_the_live_form_redraws_the_figure_and_keeps_the_last_good_shares():
    live = tug.tug_explorer().live()
    (figure,) = inside(live, go.FigureWidget)
    assert_same_data(figure, tug.tug_figure())
    controls = {w.description: w for w in inside(live, object) if getattr(w, "description", "")}
    controls["step"].value = 500
    controls["t"].value = 1.0
    assert_same_data(figure, tug.tug_figure(500, t=1.0))
    controls["P ∝"].value = "1 1 1 1 1 1 1 1 1 1"
    same = tug.tug_figure(500, t=1.0, weights="1 1 1 1 1 1 1 1 1 1")
    assert_same_data(figure, same)
    controls["P ∝"].value = "nonsense"
    assert_same_data(figure, same)
    assert any("ten numbers" in getattr(w, "value", "") for w in inside(live, object)
               if isinstance(getattr(w, "value", None), str))  # fmt: skip


def test_the_static_form_has_a_frame_for_each_training():
    static = tug.tug_explorer().static()
    assert len(static.frames) == 8
    assert_same_data(static.frames[7], tug.tug_figure(k=9, t=1.0, expected=True))
