"""Random tables and damaged files: a diagnosis whose statements hold, or one sentence."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from gsas_lab import diagnosis
from gsas_lab.errors import InputError

VERDICTS = ("overconfident: ", "underconfident: ", "calibrated: ", "calibrated on average only: ")


def random_table(rng):
    """A table of any size, scale and kind, and what is told about it."""
    users, items = rng.integers(1, 14), rng.integers(1, 16)
    prior = softmax(rng.normal(0, rng.choice([0, 1, 3]), (users, items)), axis=1)
    scale = rng.choice([0, 1e-9, 0.3, 1, 1, 1, 1, 4, 1e3, 1e6, 1e12, 1e17, 1e60, 1e250])
    with np.errstate(divide="ignore", over="ignore"):
        scores = scale * logit(np.clip(prior, 1e-9, 1 - 1e-9)) + rng.choice([0, 0, 3, -7, 1e4])
    scores = [scores, np.round(scores), prior, np.full_like(prior, 2.0)][
        rng.choice(4, p=[0.7, 0.15, 0.1, 0.05])
    ]
    chosen = np.arange(items) == rng.integers(items, size=users)[:, None]
    hit = [chosen, rng.random(prior.shape) < prior, rng.random(prior.shape) < rng.random()][
        rng.integers(3)
    ]
    if rng.random() < 0.1:  # one click, or one that is none
        hit = (np.arange(hit.size) == rng.integers(hit.size)).reshape(hit.shape)
        hit = hit if rng.random() < 0.5 else ~hit
    told = {"of": rng.choice([None, "logits", "probabilities"], p=[0.6, 0.3, 0.1])}
    kind = rng.choice(["whole", "some", "sampled", "impressions"], p=[0.4, 0.2, 0.25, 0.15])
    user, item = (x.ravel() for x in np.indices(hit.shape))
    rows = np.arange(hit.size)
    if kind == "some":
        rows = rows[rng.random(len(rows)) < rng.random()]
    elif kind == "sampled":
        rows = rows[hit.ravel() | (rng.random(len(rows)) < rng.random())]
        told |= {"sampled_negatives": True, "n_items": int(items)}
    elif kind == "impressions":
        rows = rng.integers(hit.size, size=rng.integers(1, 60))
    if kind != "sampled" and rng.random() < 0.3:
        told["n_items"] = int(items + rng.integers(-1, 4))
    table = pd.DataFrame(
        {"user": user, "item": item, "score": scores.ravel(), "clicked": hit.ravel().astype(int)}
    ).iloc[rows]
    if rng.random() < 0.2:
        table = table.assign(weight=rng.choice([0, 1, 0.5, 30, 1e-200, 1e90], size=len(table)))
    return table, told, kind


def retyped(table, rng):
    """The same, by other types."""
    table = table.copy()
    if rng.random() < 0.3:
        spelt = rng.choice(["True False", "1 0", "1.0 0.0", "true FALSE"]).split()
        table["clicked"] = [spelt[1 - c] for c in table["clicked"]]
    if rng.random() < 0.3:
        to = rng.choice(["object", "Float64", "category", "str"])
        if to == "str":
            table["score"] = [repr(float(x)) for x in table["score"]]
        else:
            table["score"] = table["score"].astype(to)
    if rng.random() < 0.3:
        name = rng.choice(["user", "item"])
        table[name] = table[name].astype(rng.choice(["object", "float", "Int16", "category"]))
    return table


def broken(table, rng):
    """The same with one cell or column that cannot be."""
    cells = [None, np.nan, pd.NA, "", "x", [1], {}, b"1", 10**400, 1j, np.inf, -1, pd.Timestamp(0),
             "\ud800", np.arange(2), float("-inf"), "1e999", pd.NaT, (), 2.5]  # fmt: skip
    table = table.astype(object)
    name = rng.choice(list(table.columns))
    if rng.random() < 0.1 or not len(table):
        return table.drop(columns=name)
    values = table[name].tolist()
    values[rng.integers(len(values))] = cells[rng.integers(len(cells))]
    return table.assign(**{name: pd.Series(values, index=table.index, dtype=object)})


def weights(table, told):
    """What each row stands for, by the definition."""
    if "weight" in table:
        return table["weight"].to_numpy(float)
    if not told.get("sampled_negatives"):
        return np.ones(len(table))
    clicks = table.groupby("user")["clicked"].transform("sum")
    others = table.groupby("user")["clicked"].transform("size") - clicks
    return np.where(table["clicked"] == 1, 1.0, (told["n_items"] - clicks) / np.maximum(others, 1))


def holds(found, table, told):
    """Every statement of a diagnosis that its table can prove."""
    text, (low, high) = str(found), found.interval
    assert found._repr_html_() and not np.isnan([low, high, found.offset]).any()
    assert low <= found.offset <= high
    assert found.verdict.startswith((*VERDICTS, "undecided: ")) and "nan" not in found.verdict
    if found.verdict.startswith(VERDICTS[:2]):
        assert np.isfinite([low, high]).all() and (low > 0 or high < 0)
        assert found.subtract == found.offset != 0
    else:
        assert found.subtract == 0 and found.advice.empty
    if found.verdict.startswith(VERDICTS[2]):
        assert abs(found.slope - 1) <= 0.2 and high - low <= 1
    if found.verdict.startswith(VERDICTS[3]):
        assert high - low <= 1
    w, scores = weights(table, told), table["score"].to_numpy(float)
    scores = logit(scores) if told["of"] == "probabilities" else scores
    clicks = w @ table["clicked"]
    assert found.observed == pytest.approx(clicks / found.users)
    assert found.expected == pytest.approx(w @ expit(scores) / found.users, rel=1e-9)
    if "no shift meets" not in text:
        assert w @ expit(scores - found.offset) == pytest.approx(clicks, rel=1e-5)
    if found.top.size:
        assert found.top.loc[10, "observed"] <= 1


def test_random_tables_are_diagnosed_by_what_they_hold_or_refused(fuzz):
    diagnosed = 0
    for seed in range(fuzz):
        rng = np.random.default_rng([1, seed])
        table, told, kind = random_table(rng)
        try:
            found = diagnosis.diagnose_table(table, **told)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        diagnosed += 1
        try:
            holds(found, table, told)
            if seed % 4 == 0:
                other = retyped(table.sample(frac=1, random_state=seed), rng)
                again = diagnosis.diagnose_table(other, **told)
                assert again.interval == found.interval and again.verdict == found.verdict
                assert again.top.equals(found.top)
            if kind == "whole" and "weight" not in table and "n_items" not in told:
                shape = found.users, found.n_items
                s, hit = (table[x].to_numpy().reshape(shape) for x in ("score", "clicked"))
                matrix = diagnosis.diagnose(s, hit, of=told["of"])
                assert str(matrix) == str(found) and matrix.interval == found.interval
        except Exception as error:
            raise AssertionError(f"seed {seed}: {told}\n{table.to_string()}\n{found}") from error
    assert diagnosed > fuzz / 3


def test_tables_with_a_cell_that_cannot_be_are_refused_or_read(fuzz):
    refused = 0
    for seed in range(fuzz):
        rng = np.random.default_rng([2, seed])
        table, told, _ = random_table(rng)
        try:
            found = diagnosis.diagnose_table(broken(table, rng), **told)
            assert found.verdict.startswith((*VERDICTS, "undecided: ")), seed
        except InputError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert refused > fuzz / 3


def write(table, path, rng):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".npy":
        np.save(path, table.to_numpy(float))
    elif path.suffix == ".npz":
        np.savez(path, scores=rng.normal(0, 2, (5, 4)), hit=np.eye(5, 4))
    elif ".jsonl" in path.suffixes:
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")


def damaged(data, rng):
    """Bytes flipped, cut, put in, left out or swapped."""
    data, n = bytearray(data), len(data)
    for _ in range(rng.integers(1, 4)):
        at, end = np.sort(rng.integers(0, n + 1, size=2))
        what = rng.integers(5)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.integers(8)
        elif what == 1:
            del data[at:]
        elif what == 2:
            data[at:at] = rng.choice([b'"', b"\0", b"\n", b",", b"\xff", b"1e", b"user", b"{"])
        elif what == 3:
            del data[at : min(end, at + 9)]
        else:
            data += data[at:end]
    return bytes(data)


def test_damaged_files_are_refused_or_read(fuzz, tmp_path: Path):
    read = 0
    suffixes = [".csv", ".tsv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".npy", ".npz"]
    for seed in range(fuzz):
        rng = np.random.default_rng([3, seed])
        table, told, _ = random_table(rng)
        path = tmp_path / f"scores{suffixes[seed % len(suffixes)]}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(table, path, rng)
        path.write_bytes(damaged(path.read_bytes(), rng))
        if path.suffix == ".npz":
            told = {"of": None}
        try:
            found = diagnosis.diagnose_table(path, **told)
            assert found.verdict.startswith((*VERDICTS, "undecided: "))
            read += 1
        except InputError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path.suffix}") from error
    assert read > fuzz / 40  # 4.5 % of 20,000


def test_intervals_cover_the_planted_offset(fuzz):
    """Whole catalogues and sampled negatives, independent clicks and one of each user."""
    tried = max(40, fuzz // 40)
    inside = 0
    for seed in range(tried):
        rng = np.random.default_rng([4, seed])
        users, items = rng.integers(40, 150), rng.integers(10, 60)
        prior = softmax(rng.normal(0, 1.5, (users, items)), axis=1)
        hit = rng.random(prior.shape) < prior
        if seed % 2:
            hit = prior.cumsum(1) >= rng.random((users, 1)) * prior.sum(1, keepdims=True)
            hit = np.arange(items) == hit.argmax(1)[:, None]
        offset = rng.normal(0, 5)
        user, item = (x.ravel() for x in np.indices(hit.shape))
        columns = {"user": user, "item": item, "score": logit(prior).ravel() + offset}
        table = pd.DataFrame(columns | {"clicked": hit.ravel().astype(int)})
        told = {"of": "logits"}
        if seed % 4 > 1:
            rank = table.assign(key=rng.random(len(table))).groupby(["user", "clicked"])["key"]
            table = table[(table["clicked"] == 1) | (rank.rank() <= 5)]
            told |= {"sampled_negatives": True, "n_items": int(items)}
        low, high = diagnosis.diagnose_table(table, **told).interval
        # With one click of each user the sum is met by design: the interval is a point, but for rounding.
        inside += low - 1e-9 <= offset <= high + 1e-9
    error = np.sqrt(0.95 * 0.05 / tried)
    assert inside / tried > 0.95 - 3.5 * error - 0.02, (inside, tried)
