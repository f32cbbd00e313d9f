"""Runs -> the tables and curves of the notebooks and of outputs/reference, each with what made it."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gsas_lab import (
    calibration,
    diagnosis,
    files,
    instrument,
    ranking,
    recipes,
    repairs,
    runs,
    splits,
)
from gsas_lab.batches import pad_right
from gsas_lab.errors import InputError, whole_number
from gsas_lab.experiment import Experiment
from gsas_lab.models import Model
from gsas_lab.settings import DATA, Settings
from gsas_lab.splits import Holdout
from gsas_lab.theory import FixedPoint
from gsas_lab.worlds import WORLDS

_RANKING = ("recall@1", "recall@10", "ndcg@10")
_PAIRS = 20_000_000  # of user and item: 80 MB of scores
_FEWEST = 30  # clicks of a month
_Z = 1.959963984540054
MEASURES = ("measures.csv", "groups.csv")


def some(holdout: Holdout, n_items: int, users: int = 2000) -> Holdout:
    """The first users of a holdout: so many, or fewer where the catalogue is large (20 million
    pairs of user and item), at least one.
    """
    return holdout.first(max(1, min(users, _PAIRS // n_items)))


def groupings(data: runs.Data, holdout: Holdout, longest: int = 200) -> dict[str, ArrayLike]:
    """Labels for `instrument.by_group` over (users of a holdout, n_items): how popular an item is in
    training, how many interactions the user has, how many of these a model reads that sees the last
    `longest`, and the item's genre, the first of several. What is the same for all is left out.
    """
    counts = np.bincount(data.split.train.items, minlength=data.split.n_items + 1)[1:]
    read = np.minimum(holdout.histories.lengths, longest)
    users = {"activity": data.interactions.lengths[holdout.users], "history read": read}
    found: dict[str, ArrayLike] = {"popularity": instrument.quantile_groups(counts)}
    found |= {name: instrument.quantile_groups(numbers)[:, None] for name, numbers in users.items()}
    world, genres = data.interactions.world, data.interactions.genres
    if world is not None:
        found["genre"] = world.item_genre_names[1:]
    elif genres is not None:
        found["genre"] = np.array([str(genre).split("|")[0] for genre in genres[1:]])
    return {name: labels for name, labels in found.items() if len(np.unique(labels)) > 1}


def shown_row(data: runs.Data, user: int | str | None) -> int:
    """The row of the user whom notebook 01 shows.

    None: user 963 of the paper's Figure 1 where the data set has that id, else its first user.
    Raises InputError for an id that it does not have.
    """
    if user is not None:
        return data.interactions.row(user)
    try:
        return data.interactions.row(963)
    except InputError:
        return 0


def summary(dataset: str, **given: Any) -> pd.DataFrame:
    """One row a system, trained now if it was not before; the floor first. Test users.

    "Σp" is the mean over users of all predicted probabilities; "ΣP inverted" pushes the same scores
    through the inverse of Theorem 5.1, which gives 1 where it holds; "seconds" are training's.
    given: settings of all systems, see `recipes.systems`.
    """
    of_data = {name: given[name] for name in given if name in DATA}
    floor = runs.train(replace(recipes.paper(recipes.popularity(), dataset), **of_data)).metrics
    rows: dict[str, dict[str, Any]] = {"Popularity": {name: floor[name] for name in _RANKING}}
    for name, settings in recipes.systems(dataset, **given).items():
        run = runs.train(settings)
        rows[name] = run.metrics | {"k": settings.k, "t": settings.t}
        if run.loss.whole:
            rows[name] |= {"k": run.data.split.n_items - 1, "t": None}
        if run.theorem:
            rows[name]["recovered"] = recovered_sum(run)
    columns = {
        "k": "k",
        "t": "t",
        "recall@1": "Recall@1",
        "recall@10": "Recall@10",
        "ndcg@10": "NDCG@10",
        "mean sum of p": "Σp",
        "recovered": "ΣP inverted",
        "training seconds": "seconds",
    }
    table = pd.DataFrame(rows).T.reindex(columns=list(columns)).rename(columns=columns)
    table = table.astype(float).round({"k": 0, "t": 2, "Σp": 2, "seconds": 0}).round(4)
    shown = table.astype(object).where(table.notna(), "")
    shown["k"] = [k if k == "" else int(k) for k in shown["k"]]
    return shown


def recalibrations(run: runs.Run) -> dict[str, repairs.Recalibration]:
    """What can be made of a run's scores: as they are, Theorem 5.1 inverted, and three fits.

    The fits see the validation users' scores of the items that may be recommended. InputError for a
    loss whose p̂ is no σ(s), which has other repairs: `choose_repair`.
    """
    if run.theorem is None:
        raise InputError(f"{run.settings.name}: p̂ is no σ(s) here, so use choose_repair.")
    split = run.data.split
    held = some(split.validation, split.n_items)
    scores, hit = run.scores(held), held.hits(split.n_items)
    may = held.candidates(split.n_items, split.protocol.exclude_seen)
    pairs = scores[may], hit[may]
    return {
        "raw σ(s)": FixedPoint(1.0, 1.0).prior,  # an offset of 0
        "analytic": run.fixed_point.prior,
        "temperature": repairs.temperature(*pairs),
        "Platt": repairs.platt(*pairs),
        "isotonic": repairs.isotonic(*pairs),
    }


def pairs(run: runs.Run, held: Holdout) -> repairs.Pairs:
    """What may be recommended to the users of a holdout, each item in its group of popularity."""
    split = run.data.split
    counts = np.bincount(split.train.items, minlength=split.n_items + 1)[1:]
    return repairs.Pairs.of(
        run.logits(run.scores(held)),
        held.hits(split.n_items),
        held.candidates(split.n_items, split.protocol.exclude_seen),
        repairs.popularity_groups(counts),
    )


def probabilities(run: runs.Run, held: Holdout, repair: repairs.Repair | None = None) -> np.ndarray:
    """p̂ of each user of a holdout, or what a repair makes of it: (users, n_items), 0 for what may not
    be recommended. InputError for a loss without p̂ (BPR) and no repair.
    """
    _require_p(run, repair)
    split = run.data.split
    logits = run.logits(run.scores(held))
    may = held.candidates(split.n_items, split.protocol.exclude_seen)
    order = np.argsort(np.where(may, -logits, np.inf), axis=1, kind="stable")
    rank = np.empty(logits.shape, np.int64)
    np.put_along_axis(rank, order, np.arange(1, logits.shape[1] + 1)[None], axis=1)
    return np.where(may, (repair or repairs.Logistic(1.0))(logits, rank=rank), 0.0)


def choose_repair(run: runs.Run, top: int | None = None) -> repairs.Choice:
    """The repair that the run's validation users choose, top: by their first items alone: see
    `repairs.choose`.
    """
    point, known = run.theorem, {}
    if point is not None and not callable(point.pull) and not np.ndim(point.alpha):
        known["analytic"] = repairs.Inverse(float(point.alpha), point.pull, point.collisions)
    held = some(run.data.split.validation, run.items.n_items)
    return repairs.choose(pairs(run, held), known, top)


def over_time(
    run: runs.Run, repair: repairs.Repair | None = None, most: int = _PAIRS
) -> pd.DataFrame:
    """How long do a model and its repair last? One row a month after the cut of a split by time.

    Columns: month; clicks, how many are judged, each with all that its user did before it, also after
    the cut (a month has `most` pairs of user and item, or 30 clicks, drawn); raw and repaired
    (None: by the offset of the validation users), the mean Σp of a click, 1 where right; offset with
    low and high, what would have to be subtracted in that month (95 % interval over clicks); new, the
    share of clicks on items that were never trained.
    Months with fewer than 30 clicks are left out; times that are no dates are cut into twelve parts.
    InputError where no month has as many. A loss without p̂ (BPR) needs a repair, and its raw is NaN.
    """
    _require_p(run, repair)
    most = whole_number("most", most)
    split, known = run.data.split, run.data.interactions
    held, when = splits.after(known, split, most=1_000_000)
    if when.max() > 6.3e8:
        month = when.astype("datetime64[s]").astype("datetime64[M]").astype(str)
    else:
        month = np.array([f"part {1 + 12 * at // len(when):2}" for at in range(len(when))])
    repair = repair or repairs.FITS["offset"](pairs(run, some(split.validation, split.n_items)))
    trained = np.bincount(split.train.items, minlength=split.n_items + 1) > 0
    rng, rows = np.random.default_rng(0), []
    for name in sorted(set(month)):
        at = np.flatnonzero(month == name)
        if len(at) < _FEWEST:
            continue
        drawn = rng.permutation(at)[: max(_FEWEST, most // split.n_items)]
        some_of = held.subset(np.sort(drawn))
        logits = run.logits(run.scores(some_of))
        may = some_of.candidates(split.n_items, split.protocol.exclude_seen)
        hits = some_of.hits(split.n_items)
        found = diagnosis.diagnose(logits, hits, of="logits", candidates=may)
        group = repair.groups(np.arange(1, split.n_items + 1), split.n_items)
        mended = repairs.Pairs.of(logits, hits, may, group).repaired(repair)
        rows.append(
            {
                "month": name,
                "clicks": len(some_of.users),
                "raw": np.nan if run.loss.link is None else found.expected,
                "repaired": mended.sum() / len(some_of.users),
                "offset": found.offset,
                "low": found.interval[0],
                "high": found.interval[1],
                "new": 1 - trained[some_of.targets].mean(),
            }
        )
    if not rows:
        raise InputError(
            f"{known.name}: no month after the cut has {_FEWEST} clicks, so none can be judged: "
            "choose an earlier split_at."
        )
    return pd.DataFrame(rows, columns="month clicks raw repaired offset low high new".split())


def _require_p(run: runs.Run, repair: repairs.Repair | None) -> None:
    if run.loss.link is None and repair is None:
        raise InputError(
            f"{run.settings.name} learns differences of scores: there is no p̂ to judge, so give a "
            "repair."
        )


def recalibration(run: runs.Run, users: int = 2000) -> pd.DataFrame:
    """`repairs.compare` of the above on the first test users."""
    split = run.data.split
    test = some(split.test, split.n_items, users)
    return repairs.compare(
        recalibrations(run),
        run.scores(test),
        test.hits(split.n_items),
        test.candidates(split.n_items, split.protocol.exclude_seen),
    )


def measures(run: runs.Run, resamples: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All measures of calibration and all groups of a run's test users -> two tables.

    Of p̂ as it is, with Theorem 5.1 inverted ("analytic") where that is known, with one offset, and
    with the repair that validation users choose, all fitted to them alone, over the items that may be
    recommended. Intervals: 95 %, users resampled.

    First: a row for each repair and measure. Σp, what is promised to a user who takes one item;
    Brier and log loss (nats), means over pairs, with discrimination and uncertainty (no interval);
    `instrument.measures`, without an interval that does not hold the debiased value, as happened to
    the log loss's miscalibration where p̂ is near 1 and wrong. Columns: system, seed, run, users,
    repair, chosen (that of the validation users), measure, value, debiased, low, high, chance, note.
    Second: system, repair, chosen, and the rows of `instrument.by_group`, Holm's correction over the
    groups of one repair.
    InputError for a loss without p̂ (BPR).
    """
    _require_p(run, None)
    choice, test = choose_repair(run), run.data.split.test
    known = pairs(run, test)
    split = run.data.split
    items = np.nonzero(test.candidates(split.n_items, split.protocol.exclude_seen))[1]
    groups = {
        name: _of_pairs(labels, known.user if np.ndim(labels) == 2 else items)
        for name, labels in groupings(run.data, test, run.settings.max_length).items()
    }
    by_rank = instrument.rank_groups(-np.arange(split.n_items)[None])[0]
    groups["rank"] = _of_pairs(by_rank, known.rank - 1)
    told: dict[str, Any] = {"system": run.settings.name, "seed": run.settings.seed}
    told |= {"run": run.folder.name, "users": len(test.users)}
    rows, of_groups = [], []
    for name in dict.fromkeys(("as it is", "analytic", "offset", choice.name)):
        if name not in choice.repairs:
            continue
        prob = known.repaired(choice.repairs[name])
        table = instrument.by_group(prob, known.hit, groups, known.user)
        of_groups.append(table)
        each = instrument.measures(prob, known.hit, known.user, known.rank, resamples=resamples)
        failed = (each["debiased"] < each["low"]) | (each["debiased"] > each["high"])
        each.loc[failed, ["debiased", "low", "high"]] = np.nan
        each.loc[failed, "note"] = "no interval, because it did not hold the debiased value"
        rows.append(pd.concat([_scores(known, prob, table.iloc[0]), each]))
        for made in (table, rows[-1]):
            made.insert(0, "repair", name)
            made.insert(1, "chosen", name == choice.name)
    found = pd.concat(rows).rename_axis("measure").reset_index().assign(**told)
    columns = [*told, "repair", "chosen", "measure", "value", "debiased", "low", "high", "chance"]
    second = pd.concat(of_groups, ignore_index=True)
    second.insert(0, "system", told["system"])
    return found.reindex(columns=[*columns, "note"]).fillna({"note": ""}), second


def _of_pairs(labels: ArrayLike, at: np.ndarray) -> pd.Categorical:
    """Labels (n,) of items, users or ranks -> those of pairs, at the place of each."""
    code, names = calibration.in_order(*calibration.factorized("group", np.ravel(labels)))
    return pd.Categorical.from_codes(code[at], pd.Index(names))


def _scores(known: repairs.Pairs, prob: np.ndarray, whole: pd.Series) -> pd.DataFrame:
    """Rows that `instrument.measures` has not: Σp (of the row of all pairs), and the scores."""
    rows = {"Σp": dict(whole[["low", "high"]]) | {"value": whole["ratio"]}}
    parts = instrument.decomposition(prob, known.hit)
    with np.errstate(divide="ignore"):
        losses = {
            "Brier": np.square(prob - known.hit),
            "log loss": -np.log(np.where(known.hit, prob, 1 - prob)),
        }
    for name, loss in losses.items():
        row = parts.loc[name]
        lean = known.by_user(loss) - row["score"] * known.lengths  # of a ratio of sums
        error = _Z * lean.std(ddof=1) / known.lengths.mean() / np.sqrt(len(lean))
        rows[name] = {"value": row["score"], "low": row["score"] - error}
        rows[name] |= {"high": row["score"] + error, "note": row["note"]}
        for part in ("discrimination", "uncertainty"):
            rows[f"{name} {part}"] = {"value": row[part]}
    return pd.DataFrame.from_dict(rows, orient="index")


def write_measures(run: runs.Run, folder: Path) -> Path:
    """measures.csv and groups.csv in folder/<data set>, which is returned; the rows of other systems
    that stand there are kept, and those of this one written anew.
    """
    folder = files.output(folder) / Path(run.settings.dataset).stem
    tables = dict(zip(MEASURES, measures(run), strict=True))
    with files.locked(folder):
        for name, table in tables.items():
            path = folder / name
            if path.exists():
                kept = _read(path)
                if list(kept.columns) != list(table.columns):
                    raise InputError(f"{path} has other columns: delete it, to make it anew.")
                kept = kept[kept["system"] != run.settings.name]
                table = pd.concat([kept, table], ignore_index=True)
            files.write(path, table.to_csv(index=False, float_format="%.6g").encode())
    return folder


def read_measures(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `write_measures` left in a data set's folder."""
    first, second = (_read(folder / name) for name in MEASURES)
    return first, second


def _read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(io.BytesIO(files.read(path)), dtype={"note": str, "verdict": str})
    return table.fillna({name: "" for name in ("note", "verdict") if name in table})


def by_system(measures: pd.DataFrame, repair: str | None = None) -> pd.DataFrame:
    """Measures × systems as text, "value [low, high]", and the largest value that chance alone gives.

    measures: the first table of `measures`; debiased values where there are. repair: its name; None:
    each system's chosen one.
    """
    own = measures["chosen"] if repair is None else measures["repair"] == repair
    if not own.any():
        names = ", ".join(dict.fromkeys(measures["repair"]))
        raise InputError(f"'{repair}' was measured of no system: choose one of {names}.")
    columns: dict[str, pd.Series] = {}
    for (system, name), rows in measures[own].groupby(["system", "repair"], sort=False):
        rows = rows.set_index("measure")
        text = rows["debiased"].fillna(rows["value"]).map("{:.3g}".format)
        known = rows["low"].notna()
        text[known] += rows.loc[known].apply(
            lambda r: f" [{r['low']:.3g}, {r['high']:.3g}]", axis=1
        )
        columns[f"{system}, {name}"] = text
    chance = measures[own].groupby("measure", sort=False)["chance"].max()
    columns["chance, at most"] = chance.map(lambda value: "" if np.isnan(value) else f"{value:.2g}")
    return pd.DataFrame(columns)


def proof(users: int = 2000, of: dict[str, Settings] | None = None) -> pd.DataFrame:
    """Learned p̂ against Theorem 5.1 over the true P, one row for each of `proofs`. Test users.

    `calibration.deviation_from_theory`, and Σp of a user: as learned and as the theorem says.
    of: other runs in a known-truth world, such as `sampler_proofs`.
    """
    rows = {}
    for name, settings in (of or recipes.proofs()).items():
        run = runs.train(settings)
        test = run.data.split.test.first(users)
        prior = runs.true_probabilities(run.data, test)
        learned = run.probabilities(run.scores(test))
        rows[name] = calibration.deviation_from_theory(prior, learned, run.fixed_point) | {
            "Σσ learned": learned.sum(axis=1).mean(),
            "Σσ by theorem": run.fixed_point.forecast_sum(prior).mean(),
        }
    return pd.DataFrame(rows).T


def recovered_sum(run: runs.Run, users: int = 2000) -> float:
    """Mean ΣP of the first test users when Theorem 5.1 is inverted on the scores; 1 if it holds."""
    split = run.data.split
    prior = run.fixed_point.prior(run.scores(some(split.test, split.n_items, users)))
    return float(prior.sum(axis=1).mean())


@dataclass(frozen=True)
class AtScale:
    """A model beside the truth in a known-truth world of any size, see `at_scale`."""

    prior: np.ndarray  # (users, items) float32: the true P of what training took often enough
    prob: np.ndarray  # (users, items) float32: the model's σ(s)
    told: np.ndarray  # (users,) the scores' P(i) summed over the whole catalogue, which should be 1
    point: FixedPoint

    @property
    def bins(self) -> pd.DataFrame:
        """`calibration.by_prior` and `calibration.by_told`, column "of" saying which: P or σ(s)."""
        of = self.prior, self.prob, self.point
        tables = {"P": calibration.by_prior(*of), "σ(s)": calibration.by_told(*of)}
        return pd.concat(tables, names=["of"]).reset_index(0).reset_index(drop=True)

    @property
    def summary(self) -> dict[str, float]:
        """users, items, `calibration.deviation_from_theory`, "max_told", the largest gap of
        `calibration.by_told`'s bins, and "ΣP told", the mean over users.
        """
        bins = calibration.by_told(self.prior, self.prob, self.point)
        return {
            "users": len(self.prior),
            "items": self.prior.shape[1],
            **calibration.deviation_from_theory(self.prior, self.prob, self.point),
            "max_told": float((bins["predicted"] - bins["theory"]).abs().max()),
            "ΣP told": float(self.told.mean()),
        }


def at_scale(experiment: Experiment, model: Model, users: int = 1000, seen: int = 50) -> AtScale:
    """The first test users and the items that training took at least `seen` times, some at a time.

    Memory: 8 · users · (items seen so often) bytes, and a few rows of the catalogue.
    """
    data, world = experiment.data, experiment.data.interactions.world
    point = experiment.loss.fixed_point(experiment.sampler)
    if world is None or point is None:
        raise InputError(
            f"{experiment.settings.name} on {data.interactions.name}: a known-truth world and a loss "
            "with a fixed point are needed."
        )
    counts = np.bincount(data.split.train.items, minlength=data.split.n_items + 1)
    often = np.flatnonzero(counts[1:] >= seen) + 1
    held = data.split.test.first(users)
    prior, prob = np.empty((2, len(held.users), len(often)), np.float32)
    told = np.empty(len(held.users))
    for scores, rows in ranking.score_in_batches(model, held):
        histories = [held.histories[row] for row in rows]
        given = pad_right(histories, max(map(len, histories))).numpy()
        prior[rows] = world.genre_probability(given)[:, world.genre[often]]
        prob[rows] = scores[:, often].sigmoid().numpy()
        for row, each in zip(rows, scores.numpy(), strict=True):
            found = experiment.loss.prior(each[1:], experiment.sampler)
            told[row] = np.nan if found is None else found.sum(dtype=np.float64)
    prior *= world.within_genre[often]
    return AtScale(prior, prob, told, point)


def write_evidence(dataset: str, folder: Path) -> Path:
    """Tables and, for each of their runs, settings, environment, protocol, metrics and history.

    Small files in folder/<data set>, which is returned: summary.csv, recalibration.csv, in the
    known-truth world proof.csv and samplers.csv, and evidence.json.
    """
    folder = files.output(folder) / Path(dataset).stem
    with files.locked(folder):
        return _write_evidence(dataset, folder)


def _write_evidence(dataset: str, folder: Path) -> Path:
    summary(dataset).to_csv(folder / "summary.csv", index_label="system")
    sasrec = runs.train(recipes.systems(dataset)["SASRec"])
    recalibration(sasrec).round(8).to_csv(folder / "recalibration.csv", index_label="SASRec")
    record, told = {}, recipes.systems(dataset)
    if dataset in WORLDS:
        proof().round(6).to_csv(folder / "proof.csv", index_label="run")
        told |= {f"proof: {name}": settings for name, settings in recipes.proofs().items()}
        samplers = recipes.sampler_proofs()
        proof(of=samplers).round(6).to_csv(folder / "samplers.csv", index_label="sampler")
        told |= {f"sampler: {name}": settings for name, settings in samplers.items()}
    for name, settings in told.items():
        run = runs.train(settings)
        parts = ("settings", "environment", "protocol", "metrics")
        record[name] = {part: files.read_json(run.folder / f"{part}.json") for part in parts} | {
            "run": run.folder.name,
            "history": run.history.round(6).to_dict("list"),
        }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    files.write(folder / "evidence.json", text.encode())
    return folder
