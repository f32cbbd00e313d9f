"""Every explorer in its static form, on one data set: the page that `make site` adds."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from gsas_lab import decisions, evidence, paper, recipes, results, runs
from gsas_lab.calibration import precision_vs_predicted
from gsas_lab.lessons import explorers
from gsas_lab.lessons import theory_explorers as drag
from gsas_lab.lessons.break_it import break_explorer
from gsas_lab.lessons.million import million_explorer
from gsas_lab.lessons.tug_of_war import tug_explorer

STORY = (
    "Everything that can be dragged, by slider and without a kernel. Live, in notebooks 00, 01, 02, "
    "04, 05, 10 and 11, there are more sliders."
)


def figures(dataset: str, **given: Any) -> dict[str, go.Figure]:
    """By heading: the theory's six, those of notebooks 00, 01, 04, 10 and 11, and Figure 3 where
    outputs/reference holds it.

    The systems are trained now if they were not before; `given`: see `recipes.systems`.
    """
    trained = {name: runs.train(own) for name, own in recipes.systems(dataset, **given).items()}
    data = next(iter(trained.values())).data
    shown, users = explorers.from_outcomes(data, {n: run.outcome for n, run in trained.items()})
    curves = {
        name: precision_vs_predicted(run.outcome.prob, run.outcome.ranks, run.fixed_point)
        for name, run in trained.items()
        if run.theorem
    }
    every = {
        "One score, one loss": drag.sigmoid_explorer(),
        "Ten items, pulled and pushed": tug_explorer(),
        "Theorem 5.1": drag.prior_explorer(),
        "A whole catalogue": drag.catalogue_explorer(),
        "Which k, which t?": drag.map_explorer(),
        "May a negative be the positive?": drag.collisions_explorer(),
        f"Any user ({data.interactions.name})": explorers.user_explorer(shown, users),
        f"Precision against prediction ({data.interactions.name})": (
            explorers.calibration_explorer(curves)
        ),
        "Calibrated, then broken": break_explorer(),
        f"The desk of decisions ({data.interactions.name})": _desk(trained["gSASRec"]),
        "The memory of a full loss": explorers.memory_explorer(),
        "A million items": million_explorer(),
    }
    if (results.REFERENCE / dataset / "figure3").exists():
        swept = results.of_paper("figure3", dataset)
        theirs = {"NDCG@10": paper.figure_3()} if dataset in results.IN_PAPER else None
        every[f"Figure 3. {swept.source}"] = explorers.grid_explorer(swept.shown, paper=theirs)
    return {heading: explorer.static() for heading, explorer in every.items()}


def _desk(run: runs.Run) -> explorers.Explorer:
    """That of notebook 11, at a cost that pays for a quarter of the users by the repaired model."""
    test = evidence.some(run.data.split.test, run.data.split.n_items)
    hits = test.hits(run.data.split.n_items)
    repair = evidence.choose_repair(run, top=10).repair
    raw, repaired = (evidence.probabilities(run, test, each) for each in (None, repair))
    cost = float(np.quantile(decisions.best(repaired)[0], 0.75))
    rungs = {}
    for name, prob in (("gSASRec, raw", raw), ("gSASRec, repaired", repaired)):
        first, came = decisions.best(prob, hits)
        rungs[name] = decisions.ladder(first, came)
    return explorers.desk_explorer(rungs, cost=cost)
