"""Speed and memory against the literal formulation, side by side: `make bench`.

Each case runs in a process of its own, so that its peak memory is its own. Inside it the contestants
take turns, A B A B, after one warm-up each; a row holds the times' 20th, 50th and 80th percentile,
the ratio of the medians to the literal form, and for losses the largest error of loss and gradients
against float64, without which no time counts. The literal form is `usual_gbce` of tests/reference.py.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import reference  # noqa: E402  (the tests' literal form is the baseline)

from gsas_lab import batches, fused, recipes, runs, samplers, theory  # noqa: E402
from gsas_lab.encoders import SASRec  # noqa: E402

BETA = 0.3
ITEMS = {"ML-1M": 3_416, "Beauty": 54_542, "Gowalla": 1_271_638}
POSITIONS = {3_416: 4_096, 54_542: 2_048, 1_271_638: 1_024}
Contestant = Callable[[], tuple[float, ...]]


def tensors(k: int, n_items: int, d: int) -> tuple:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS[n_items], d, generator=g).div_(4).requires_grad_()
    table = torch.randn(n_items + 1, d, generator=g).div_(4).requires_grad_()
    positives = torch.randint(1, n_items + 1, (len(hidden),), generator=g)
    return hidden, table, positives, samplers.positive_excluded(positives, k, n_items, g)


def losses(k: int, n_items: int, d: int = 128) -> dict:
    """The loss alone, forward and backward, from hidden states."""
    hidden, table, positives, negatives = tensors(k, n_items, d)

    def run(loss):
        hidden.grad = table.grad = None
        value = loss(hidden, table, positives, negatives, BETA)
        value.backward()
        return float(value.detach()), hidden.grad, table.grad

    return {
        "literal": lambda: run(reference.usual_gbce),
        "portable": lambda: run(fused.gbce),
    }


def exact(k: int, n_items: int, d: int = 128) -> tuple:
    """Loss and gradients of `losses` in float64, a few hundred positions at a time."""
    hidden, table, positives, negatives = tensors(k, n_items, d)
    hidden, table = (x.detach().double().requires_grad_() for x in (hidden, table))
    total = 0.0
    for part in torch.arange(len(hidden)).split(256):
        items = torch.cat([positives[part, None], negatives[part]], 1)
        score = torch.einsum(
            "pd,pmd->pm", hidden[part], torch.nn.functional.embedding(items, table)
        )
        value = reference.gbce(score[:, 0], score[:, 1:], BETA) * (len(part) / len(hidden))
        value.backward()
        total += float(value.detach())
    return total, hidden.grad, table.grad


def steps(k: int, d: int = 128) -> dict:
    """A training step at the paper's size: 128 windows of up to 200 items, dropout 0.5, AdamW."""
    settings = runs.Settings(dataset="ml-1m", loss="gbce", k=k, t=0.75, d=d)
    data = runs.load_data(settings)
    n_items = data.split.n_items
    rng = np.random.default_rng(0)
    plan = batches.epoch(data.split.train, 200, 128, "last", rng)[:1]
    batch = next(iter(batches.batches(data.split.train, plan)))
    beta = float(theory.beta_from_t(0.75, theory.alpha(k, n_items)))
    # The literal step pads every window to 200 on one side and scores whatever is there.
    width = max(group.shape[1] for group in batch.items)
    padded = torch.cat([torch.nn.functional.pad(g, (0, width - g.shape[1])) for g in batch.items])

    def contestant(ours: bool) -> Contestant:
        torch.manual_seed(0)
        model = SASRec(n_items, d=d, dropout=0.5).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        generator = torch.Generator().manual_seed(0)

        def step() -> tuple[float, ...]:
            optimizer.zero_grad(set_to_none=True)
            if ours:
                hidden = torch.cat([model(items)[items != 0] for items in batch.items])
                negatives = samplers.positive_excluded(batch.positives, k, n_items, generator)
                value = fused.gbce(hidden, model.table, batch.positives, negatives, beta)
            else:
                hidden = model(padded).flatten(0, 1)  # padding is scored too
                positives = torch.ones(len(hidden), dtype=torch.int64)
                positives[padded.flatten() != 0] = batch.positives
                negatives = samplers.whole_catalogue(positives, k, n_items, generator)
                value = reference.usual_gbce(hidden, model.table, positives, negatives, beta)
            value.backward()
            optimizer.step()
            return (float(value.detach()),)

        return step

    return {"literal": contestant(False), "float32": contestant(True)}


def evaluation(d: int = 128) -> dict:
    """All 6,040 test users of MovieLens-1M, whole catalogue, seen filter, encoder included."""
    data = runs.load_data(recipes.quick(recipes.sasrec(), "ml-1m"))
    torch.manual_seed(0)
    model = SASRec(data.split.n_items, d=d).eval()
    return {"evaluate": lambda: (runs.evaluate(model, data.split)["ndcg@10"],)}


def error(found: tuple, truth: tuple) -> float:
    """The largest difference of loss and gradients, relative to the largest entry of each."""
    worst = 0.0
    for ours, theirs in zip(found, truth, strict=True):
        ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)))
    return worst


def measure(case: str, rounds: int, only: str = "") -> list[dict]:
    """Rows of one case. `only`: run one contestant, for its own peak memory."""
    kind, *sizes = case.split(":")
    makers = {"loss": losses, "step": steps, "evaluation": evaluation}
    contestants = makers[kind](*map(int, sizes))
    if only:
        contestants = {only: contestants[only]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = {name: run() for name, run in contestants.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if only:
        return [{"peak MB": peak / 1024, "of it before": before / 1024}]
    truth = exact(*map(int, sizes)) if kind == "loss" else None
    errors = {n: error(r, truth) if truth else None for n, r in first.items()}
    del first
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    baseline = middle.get("literal")
    return [
        {
            "case": case,
            "what": name,
            **{f"p{p} s": float(np.percentile(seconds[name], p)) for p in (20, 50, 80)},
            "literal / this": baseline / middle[name] if baseline else None,
            "error": errors[name],
        }
        for name in contestants
    ]


def child(case: str, rounds: int, only: str = "") -> list[dict]:
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--case", case, "--rounds", str(rounds), "--only", only]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} {only}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results.csv")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.rounds, arguments.only)))
        return
    cases = [f"loss:{k}:{n}" for n in ITEMS.values() for k in (1, 16, 64, 256)]
    cases += ["step:256", "evaluation"]
    rows = []
    evidence = runs.environment(torch.device("cpu"))
    for case in cases:
        for row in child(case, arguments.rounds):
            if case.startswith(("step", "loss:256")):
                row |= child(case, 1, row["what"])[0]
            rows.append(row | evidence)
            shown = {k: v for k, v in row.items() if v is not None}
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v)
                            for k, v in shown.items()), flush=True)  # fmt: skip
    pd.DataFrame(rows).to_csv(arguments.output, index=False)
    print(arguments.output)


if __name__ == "__main__":
    main()
