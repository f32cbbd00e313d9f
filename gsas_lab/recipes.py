"""The paper's systems as named settings, and the budgets in which they are trained here."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from gsas_lab import interactions, runs
from gsas_lab.errors import InputError
from gsas_lab.losses import LOSSES
from gsas_lab.samplers import SAMPLERS
from gsas_lab.settings import DATA, Settings
from gsas_lab.worlds import WORLDS


def popularity() -> Settings:
    """The most popular items for everyone."""
    return Settings(model="popularity")


def mf_bpr() -> Settings:
    """Matrix factorisation with BPR and one negative (Rendle et al., 2009).

    A step takes 4,096 interactions, of any users. d = 64 reached the paper's figures at the first
    try (docs/LOG.md).
    """
    return Settings(
        model="mf", loss="bpr", k=1, d=64, batch_size=4096, lr=2e-3, epochs=60, patience=10
    )


def sasrec() -> Settings:
    """SASRec as in the paper: BCE with one negative."""
    return Settings(loss="bce", k=1)


def sasrec_bce(k: int = 1) -> Settings:
    """SASRec's loss with k negatives, as in Figure 4."""
    return Settings(loss="bce", k=k)


def sasrec_sampled_softmax(k: int = 16) -> Settings:
    """SASRec with sampled softmax; Figure 1 has 16 negatives."""
    return Settings(loss="sampled_softmax", k=k)


def sasrec_softmax() -> Settings:
    """SASRec with softmax over the whole catalogue."""
    return Settings(loss="softmax")


def sasrec_shared(k: int = 256) -> Settings:
    """SASRec with sampled softmax over k negatives that all positions of a window share.

    With k = 3,000 it is the best published on MovieLens-1M (`paper.later_results`).
    """
    return Settings(loss="sampled_softmax", k=k, sampler="shared-sequence")


def gsasrec(k: int = 256, t: float = 0.75) -> Settings:
    """gSASRec: SASRec with k negatives and gBCE. The paper's MovieLens-1M settings by default."""
    return Settings(loss="gbce", k=k, t=t)


def bert4rec() -> Settings:
    """BERT4Rec: bidirectional, a fifth of the items masked, softmax over the whole catalogue."""
    return Settings(
        model="bert4rec", loss="softmax", block="bert", heads=2, tied=True, dropout=0.2, masked=0.2
    )


def bert4rec_bce(k: int = 1) -> Settings:
    """BERT4Rec with SASRec's loss; one negative in Table 2."""
    return replace(bert4rec(), loss="bce", k=k)


def bert4rec_gbce(k: int = 256, t: float = 1.0) -> Settings:
    """BERT4Rec with gBCE, as in Figure 4."""
    return replace(bert4rec(), loss="gbce", k=k, t=t)


def bert4rec_sampled_softmax(k: int = 16) -> Settings:
    """BERT4Rec with sampled softmax, as in Figure 4."""
    return replace(bert4rec(), loss="sampled_softmax", k=k)


RECIPES: dict[str, Callable[[], Settings]] = {
    "popularity": popularity,
    "mf-bpr": mf_bpr,
    "sasrec": sasrec,
    "sasrec-bce": sasrec_bce,
    "sasrec-sampled-softmax": sasrec_sampled_softmax,
    "sasrec-softmax": sasrec_softmax,
    "sasrec-shared": sasrec_shared,
    "gsasrec": gsasrec,
    "bert4rec": bert4rec,
    "bert4rec-bce": bert4rec_bce,
    "bert4rec-gbce": bert4rec_gbce,
    "bert4rec-sampled-softmax": bert4rec_sampled_softmax,
}


def paper(system: Settings, dataset: str) -> Settings:
    """A system as the paper trains it: hours to days on two cores, minutes to hours on a GPU."""
    return replace(system, dataset=dataset)


def quick(system: Settings, dataset: str) -> Settings:
    """A system in the notebooks' budget: the same loss, an encoder and a schedule for minutes.

    The modern block with a tied table, width 64, less dropout, every interaction trained on, the
    output bias started by theory, and a learning rate that rises, stays and falls. The paper's own
    budget takes hours on two cores; docs/LOG.md has what this one was measured to reach. Systems
    get about equal *time*: a pass costs about the same whatever the number of negatives, but twice
    as much with softmax over the whole of MovieLens-1M's catalogue, which gets half the passes.
    BERT4Rec, which is asked about a fifth of the items in a pass, gets five times the passes, with
    the encoder's products in bfloat16.
    """
    if system.model == "popularity":
        return replace(system, dataset=dataset)
    if system.model == "mf":  # minutes as the recipe has it
        return replace(system, dataset=dataset, epochs=60, patience=10, lr=2e-3)
    known_truth = dataset in WORLDS
    whole = system.loss == "softmax" and system.model == "sasrec"
    epochs = (6 if whole else 8) if known_truth else (12 if whole else 24)
    cloze = system.model == "bert4rec"
    epochs *= 5 if cloze else 1
    return replace(
        system,
        dataset=dataset,
        precision="bfloat16" if cloze else "float32",
        block="modern",
        tied=True,
        heads=1,
        d=64,
        max_length=50 if known_truth else 200,
        dropout=0.0 if known_truth else 0.2,  # the world is large enough not to overfit
        windows="all",
        theory_start=True,
        lr=3e-3,
        warmup=0.05,
        cooldown=0.5,
        epochs=epochs,
        patience=epochs,
    )


def small(system: Settings, dataset: str) -> Settings:
    """A system in a sweep's budget: half a minute a run on one core, to see shapes, not records.

    As `quick` with width 32, windows of at most 50 items and fewer passes, all in float32.
    """
    if system.model == "popularity":
        return replace(system, dataset=dataset)
    if system.model == "mf":
        return replace(system, dataset=dataset, epochs=15, patience=15, lr=4e-3)
    epochs = 4 if dataset in WORLDS else 6
    epochs *= 4 if system.model == "bert4rec" else 1
    budget: dict[str, Any] = {"d": 32, "max_length": 50, "precision": "float32"}
    budget |= {"epochs": epochs, "patience": epochs}
    return replace(quick(system, dataset), **budget)


PROFILES: dict[str, Callable[[Settings, str], Settings]] = {
    "small": small,
    "quick": quick,
    "paper": paper,
}


def settings(recipe: str, profile: str, given: dict[str, Any]) -> Settings:
    """A recipe in a budget, and settings over both.

    What the budget looks at (dataset, model, loss) is given before it is applied, so that a softmax
    gets a softmax's passes. InputError for an unknown recipe or profile.
    """
    for what, name, known in (("recipe", recipe, RECIPES), ("profile", profile, PROFILES)):
        if name not in list(known):
            raise InputError(f"{what} = {name!r}: choose one of {', '.join(known)}.")
    first = {name: given[name] for name in ("dataset", "model", "loss") if name in given}
    system = replace(RECIPES[recipe](), **first)
    return replace(PROFILES[profile](system, system.dataset), **given)


def chosen(recipe: str, profile: str, given: Mapping[str, Any]) -> Settings:
    """`settings`, scaled to the data where nothing is given (see `scaled`): one system of a notebook.

    InputError for a setting that the system does not read, such as t of BCE.
    """
    system = scaled(settings(recipe, profile, dict(given)), given)
    refuse_unread(system, given)
    return system


def refuse_unread(system: Settings, given: Mapping[str, Any]) -> None:
    """InputError for a setting that was given and that the system does not read, such as t of BCE."""
    for name in given:
        if name in system.unread:
            raise InputError(
                f"{name} = {given[name]} makes no difference to {system.name} (model "
                f"'{system.model}', loss '{system.loss}'): leave it out, or choose another of these."
            )


def profile_of(settings: Settings) -> str:
    """The budget that settings have: the first of PROFILES that would change nothing, or "own".

    "any" for Popularity, which needs none.
    """
    if settings.model == "popularity":
        return "any"
    for name in ("small", "quick"):
        if PROFILES[name](settings, settings.dataset) == settings:
            return name
    return "paper" if settings.epochs == Settings.epochs else "own"


def same(settings: Settings) -> list[Settings]:
    """The settings by another name that train the same: gBCE with t = 0 is BCE, bit for bit."""
    if settings.loss == "bce":
        return [replace(settings, loss="gbce", t=0.0)]
    return [replace(settings, loss="bce")] if (settings.loss, settings.t) == ("gbce", 0.0) else []


def strong(dataset: str, seed: int = 1) -> Settings:
    """gSASRec where quality counts more than equal time: gated blocks, d = 128, two heads, 64 windows
    a step, the encoder's products in bfloat16.

    Chosen on MovieLens-1M's validation users among the tries in docs/LOG.md; test users had no say.
    On processors without bfloat16 products it is slower than in float32 (1.5 times with AVX-512, 12
    times with AVX2), and as good.
    """
    return replace(
        quick(systems(dataset)["gSASRec"], dataset),
        block="gated",
        d=128,
        heads=2,
        batch_size=64,
        epochs=30,
        patience=30,
        precision="bfloat16",
        seed=seed,
    )


def million(dataset: str = "known-truth-million", seed: int = 1) -> Settings:
    """gSASRec for a catalogue of a million items on two cores; docs/LOG.md has what it reaches.

    The paper's k and t on Gowalla, its negatives shared by a window, so that a step touches 2 % of
    a table; windows of 50; and 3 % of known-truth-million's users for validation. One table reads, one
    scores, and lazy Adam moves their rows at a third of the usual rate, which falls for longer: ΣP is
    too high while it is high. With one table for both at the usual rate, or with row-wise Adagrad,
    little more than popularity was learned in eight passes.
    """
    return replace(
        quick(gsasrec(128, 0.9), dataset),
        max_length=50,
        tied=False,
        sampler="shared-sequence",
        precision="bfloat16",
        table_optimizer="lazy_adam",
        lr=0.001,
        cooldown=0.75,
        epochs=24,
        patience=24,
        validation_users=2585,
        seed=seed,
    )


def systems(dataset: str, **given: Any) -> dict[str, Settings]:
    """The five systems of notebooks 01 and 04 in the quick budget, by name, scaled to the data set.

    given: settings of all of them, which win over recipe, budget and scale. Softmax is left out
    where not even one pass over the data fits into its budget, see `scaled`. Raises InputError for a
    setting in which the systems differ (OWN), and for one that none of them reads.
    """
    if own := [name for name in given if name in OWN]:
        raise InputError(
            f"{own[0]} is what the systems differ in, so it cannot be set for all of them: "
            "train one with it in notebook 03, or with python -m gsas_lab train."
        )
    data = {name: given[name] for name in given if name in DATA} | {"dataset": dataset}
    found = {}
    for name, recipe in _SYSTEMS.items():
        plain = quick(replace(recipe(), **data), dataset)
        if "epochs" in given or not _too_long(plain):
            found[name] = scaled(plain, given)
    for name in given:
        if all(name in system.unread for system in found.values()):
            raise InputError(f"{name} makes no difference to {', '.join(found)}: leave it out.")
    return found


_SYSTEMS: dict[str, Callable[[], Settings]] = {
    "SASRec": sasrec,
    "SASRec, sampled softmax": sasrec_sampled_softmax,
    "SASRec, softmax": sasrec_softmax,
    "gSASRec": gsasrec,
    "gSASRec, t = 1": lambda: gsasrec(t=1.0),
}
OWN = ("model", "loss", "k", "t")  # what systems differ in
SHARED = tuple(item.name for item in fields(Settings) if item.name not in OWN)

DENSEST = 0.075  # α of the paper's 256 negatives among MovieLens-1M's 3,416 items
POSITIONS = 24_000_000  # trained on in 24 passes over MovieLens-1M
SCORES = 41_000_000_000  # of a softmax in 12 passes over MovieLens-1M
OF_A_FILE = 6  # parts: a file of somebody's gets one, so that all notebooks end in minutes


def scaled(system: Settings, given: Mapping[str, Any] | None = None) -> Settings:
    """A system for data of another size than MovieLens-1M: k and passes, by one rule.

    k is halved until its sampling rate α is at most that of the paper's 256 negatives on
    MovieLens-1M, 0.075: 64 among the known-truth world's 1,000 items, 2 among 30. Passes are as
    many as the budget has, or as few as train on 24 million positions and, with softmax, compute 41
    thousand million scores, which is what MovieLens-1M takes; at least one. A file, whose budget
    nobody has measured, gets a sixth of both. given: settings that are not scaled, as somebody chose
    them.
    """
    k, n_items = system.k, runs.load_data(system).split.n_items
    while k > 1 and k > DENSEST * (n_items - 1):
        k //= 2
    passes = max(1, min(system.epochs, int(_passes(system))))
    shorter = {"epochs": passes, "patience": passes} if passes < system.epochs else {}
    return replace(system, **{"k": k} | shorter | dict(given or {}))


def _passes(system: Settings) -> float:
    """How many passes over its data fit into a system's budget."""
    split = runs.load_data(system).split
    positions = max(1, len(split.train.items)) * _parts(system)
    passes = POSITIONS / positions
    whole = LOSSES[system.loss].whole
    return min(passes, SCORES / positions / split.n_items) if whole else passes


def _too_long(system: Settings) -> bool:
    """Does not even one pass of its softmax fit?"""
    split = runs.load_data(system).split
    scores = len(split.train.items) * split.n_items * _parts(system)
    return LOSSES[system.loss].whole and scores > SCORES


def _parts(system: Settings) -> int:
    return 1 if interactions.is_named(system.dataset) else OF_A_FILE


def scaling(dataset: str, **given: Any) -> str:
    """What `scaled` changed in `systems`, in a sentence."""
    found = systems(dataset, **given)
    split = runs.load_data(next(iter(found.values()))).split
    told = [f"{name} left out (one pass is too long)" for name in _SYSTEMS if name not in found]
    for name, system in found.items():
        plain = replace(quick(_SYSTEMS[name](), dataset), **given)
        for what in ("k", "epochs"):
            if (now := getattr(system, what)) != (before := getattr(plain, what)):
                told.append(f"{name} has {what} = {now} instead of {before}")
    size = f"{split.n_items:,} items and {len(split.train.items):,} training interactions"
    return f"Scaled to {size}: {'; '.join(told) or 'nothing had to be changed'}."


def proofs() -> dict[str, Settings]:
    """The runs that test Theorem 5.1 in notebook 02, by name: 15 seconds each on two cores.

    In known-truth-small, one pass over interactions that are never seen twice, which is as close
    as a training gets to the theorem's "sufficiently large number of training samples".
    """
    every = {
        "SASRec": sasrec(),
        "k = 1, t = 1": gsasrec(1, 1.0),
        "k = 16, t = 0.75": gsasrec(16, 0.75),
        "k = 16, t = 1": gsasrec(16, 1.0),
        "k = 16, t = 1, collisions": replace(gsasrec(16, 1.0), sampler="whole-catalogue"),
        "k = 1, expected loss": replace(gsasrec(1, 0.0), loss="expected_gbce"),
    }
    return {name: _one_pass(system) for name, system in every.items()}


def sampler_proofs() -> dict[str, Settings]:
    """gBCE with each sampler, and two losses with logQ, as `proofs`: Theorem 5.1 for any proposal.

    It holds where each positive draws anew. A draw of 16 that a whole batch shares is too noisy for
    one pass, one of 128 is not; and without the history's items there is no such fixed point where
    items repeat.
    """
    every = {name: replace(gsasrec(16, 0.75), sampler=name) for name in SAMPLERS}
    every["shared-batch, k = 128"] = replace(gsasrec(128, 0.75), sampler="shared-batch")
    correct: dict[str, Any] = {"sampler": "popularity", "logq": True}
    every["popularity, logQ"] = replace(gsasrec(16, 0.75), **correct)
    every["popularity, sampled softmax, logQ"] = replace(sasrec_sampled_softmax(16), **correct)
    return {name: _one_pass(system) for name, system in every.items()}


def _one_pass(system: Settings) -> Settings:
    """The budget of the proofs."""
    return replace(
        quick(system, "known-truth-small"), d=32, batch_size=32, epochs=1, patience=1, cooldown=1.0
    )


def slow_start() -> dict[str, Settings]:
    """gBCE with and without the output bias that Theorem 5.1 gives, for notebook 02."""
    start = quick(gsasrec(64), "known-truth")
    start = replace(start, d=32, epochs=5, patience=5)
    return {"bias from theory": start, "no bias": replace(start, theory_start=False)}
