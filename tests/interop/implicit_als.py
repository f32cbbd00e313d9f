"""ALS of implicit on MovieLens-1M: its dot products are no logits; Platt's line makes them P.

    make interop                      or: python tests/interop/implicit_als.py [ml-1m.txt]

Runs in an environment of its own (.venv-interop). ALS minimises Σ c (1[seen] − x·y)²: a dot product
near 1 says "seen before" and one near 0 "not", so σ of it has no meaning and "calibrated" is not
defined. Platt's line is fitted to the held-out items of 500 users and judged on 500 others.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from gsas_lab import diagnosis, repairs

USERS = 500  # to fit, and as many to judge
warnings.filterwarnings("ignore", "`rcond` parameter", FutureWarning)  # of NumPy 1


def main(path: Path) -> None:
    rows = pd.DataFrame(np.loadtxt(path, dtype=np.int64), columns=["user", "item"])
    last = rows.groupby("user").tail(1)  # of each user, held out
    train = rows.drop(last.index)
    seen = csr_matrix(
        (np.ones(len(train), np.float32), (train["user"], train["item"])),
        shape=tuple(rows.max() + 1),
    )
    model = AlternatingLeastSquares(factors=32, iterations=10, random_state=1, num_threads=1)
    with threadpool_limits(1, "blas"):
        model.fit(seen, show_progress=False)
    known = last[last["item"].isin(train["item"])].sample(2 * USERS, random_state=1)
    fit, judge = (exported(model, seen, part) for part in (known[:USERS], known[USERS:]))
    line = repairs.platt(fit["score"], fit["clicked"] == 1)
    n_items = int((seen.getnnz(axis=0) > 0).sum())
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "scores.csv"  # what `python -m gsas_lab diagnose` reads
        judge.to_csv(table, index=False)
        raw = diagnosis.diagnose_table(table, of="logits", n_items=n_items)
        repaired = diagnosis.diagnose_table(table, of="logits", n_items=n_items, repair=line)
    score = judge["score"]
    print(f"{len(judge):,} pairs; dot products {score.min():.2f} to {score.max():.2f}")
    print(f"σ of the dot product, which means nothing: {raw.verdict}")
    print(f"Platt, slope {line.slope:.2f}, shift {line.shift:.2f}: {repaired.verdict}")
    print(repaired.top.round(4).to_string())
    if not repaired.verdict.startswith("calibrated"):
        sys.exit("Platt's line did not repair ALS on users that it was not fitted to.")


def exported(model, seen, targets: pd.DataFrame) -> pd.DataFrame:
    """Rows user, item, score, clicked of every item that these users have not seen."""
    users = targets["user"].to_numpy()
    may = ~seen[users].toarray().astype(bool) & (seen.getnnz(axis=0) > 0)
    row, item = np.nonzero(may)
    scores = (model.user_factors[users] @ model.item_factors.T)[may]
    clicked = (item == targets["item"].to_numpy()[row]).astype(int)
    return pd.DataFrame({"user": users[row], "item": item, "score": scores, "clicked": clicked})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/ml-1m.txt"))
