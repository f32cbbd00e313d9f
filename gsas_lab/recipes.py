"""The paper's systems as named settings, and the budgets in which they are trained here."""

from dataclasses import replace

from gsas_lab.runs import Settings


def sasrec() -> Settings:
    """SASRec as in the paper: BCE with one negative."""
    return Settings(loss="bce", k=1)


def sasrec_sampled_softmax(k: int = 16) -> Settings:
    """SASRec with sampled softmax; Figure 1 has 16 negatives."""
    return Settings(loss="sampled_softmax", k=k)


def sasrec_softmax() -> Settings:
    """SASRec with softmax over the whole catalogue."""
    return Settings(loss="softmax")


def gsasrec(k: int = 256, t: float = 0.75) -> Settings:
    """gSASRec: SASRec with k negatives and gBCE. The paper's MovieLens-1M settings by default."""
    return Settings(loss="gbce", k=k, t=t)


def quick(system: Settings, dataset: str, **changes) -> Settings:
    """A system in the notebooks' budget: the same loss, an encoder and a schedule for minutes.

    The modern block with a tied table, width 64, less dropout, every interaction trained on, and a
    learning rate that rises, stays and falls. The paper's own budget takes hours on two cores.
    """
    sizes: dict = {"d": 64, "max_length": 200, "epochs": 40, "dropout": 0.2, "lr": 2e-3}
    if dataset == "known-truth":
        sizes = {"d": 64, "max_length": 50, "epochs": 12, "dropout": 0.0, "lr": 3e-3}
    return replace(
        system,
        dataset=dataset,
        block="modern",
        tied=True,
        windows="all",
        theory_start=True,
        warmup=0.05,
        cooldown=0.5,
        **{"patience": sizes["epochs"], **sizes, **changes},
    )
