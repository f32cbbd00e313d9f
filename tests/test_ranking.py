"""Ranks by counting against a slow literal loop and against ir-measures."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import ir_measures
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsas_lab import metrics, ranking, runs
from gsas_lab.errors import InputError
from gsas_lab.experiment import assemble
from gsas_lab.kernels import native, scan
from gsas_lab.ranking import rank_of_targets

NONE = torch.empty(0, dtype=torch.int64)
INF = float("inf")


def literal_rank(scores, target, seen):
    """Sort the candidates as a stable sort would, and look where the target stands."""
    candidates = [i for i in range(1, len(scores)) if i == target or i not in seen]
    return sorted(candidates, key=lambda i: -scores[i]).index(target) + 1


def literal_ranks(scores, targets, rows, items):
    seen = [{i for r, i in zip(rows, items, strict=True) if r == row} for row in range(len(scores))]
    return [literal_rank(*user) for user in zip(scores, targets, seen, strict=True)]


@st.composite
def cases(draw):
    n_items, n_rows = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    score = st.sampled_from([-INF, -80.0, -1.0, 0.0, 1.0, 1.5, 80.0, INF])  # few values: many ties
    row = st.lists(score, min_size=n_items + 1, max_size=n_items + 1)
    scores = draw(st.lists(row, min_size=n_rows, max_size=n_rows))
    targets = draw(st.lists(st.integers(1, n_items), min_size=n_rows, max_size=n_rows))
    pair = st.tuples(st.integers(0, n_rows - 1), st.integers(0, n_items))
    pairs = draw(st.lists(pair, max_size=40))  # in any order, with repeats, padding and the target
    return scores, targets, [r for r, _ in pairs], [i for _, i in pairs]


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([1, 20, 2**21]))
def test_counting_agrees_with_sorting(case, block):
    scores, targets, rows, items = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_BLOCK", block)  # the answer does not depend on the block's size
        ranks = rank_of_targets(
            torch.tensor(scores),
            torch.tensor(targets),
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor(items, dtype=torch.int64),
        )
    assert ranks.dtype == torch.int64
    assert ranks.tolist() == literal_ranks(scores, targets, rows, items)


def test_metrics_agree_with_ir_measures():
    generator = torch.Generator().manual_seed(0)
    n_users, n_items = 60, 40
    order = torch.rand(n_users, n_items + 1, generator=generator).argsort(1)
    scores = order.float()  # distinct in each row: no tie rule can matter
    targets = torch.randint(1, n_items + 1, (n_users,), generator=generator)
    ranks = rank_of_targets(scores, targets, NONE, NONE).numpy()

    users, items = np.indices((n_users, n_items))
    run = pd.DataFrame(
        {
            "query_id": users.ravel().astype(str),
            "doc_id": (items.ravel() + 1).astype(str),
            "score": scores[:, 1:].numpy().ravel().astype(float),
        }
    )
    qrels = pd.DataFrame(
        {
            "query_id": np.arange(n_users).astype(str),
            "doc_id": targets.numpy().astype(str),
            "relevance": 1,
        }
    )
    names = {"recall@1": "R@1", "recall@10": "R@10", "ndcg@10": "nDCG@10"}
    measures = {ours: ir_measures.parse_measure(theirs) for ours, theirs in names.items()}
    expected = ir_measures.calc_aggregate(measures.values(), qrels, run)
    ours = metrics.summary(ranks)
    assert ours.keys() == names.keys() and 0 < ours["ndcg@10"] < 1
    for name, measure in measures.items():
        assert ours[name] == pytest.approx(expected[measure], abs=1e-12)


def test_an_equal_score_ranks_before_the_target_if_its_id_is_lower():
    scores = torch.zeros(1, 6)
    ranks = [int(rank_of_targets(scores, torch.tensor([i]), NONE, NONE)) for i in range(1, 6)]
    assert ranks == [1, 2, 3, 4, 5]


def test_a_seen_pair_that_occurs_twice_is_taken_out_once():
    scores = torch.tensor([[0.0, 9.0, 8.0, 7.0, 1.0]])
    target, seen = torch.tensor([4]), torch.tensor([1, 1, 1])
    assert int(rank_of_targets(scores, target, torch.zeros_like(seen), seen)) == 3


def test_a_target_that_was_seen_is_still_ranked():
    scores = torch.tensor([[0.0, 9.0, 8.0, 7.0, 1.0]])
    target, seen = torch.tensor([3]), torch.tensor([3, 1])
    assert int(rank_of_targets(scores, target, torch.zeros_like(seen), seen)) == 2


def test_padding_never_counts():
    scores = torch.tensor([[INF, 1.0, 2.0], [float("nan"), 2.0, 1.0]])
    assert rank_of_targets(scores, torch.tensor([2, 1]), NONE, NONE).tolist() == [1, 1]


def test_infinite_scores_have_a_place():
    scores = torch.tensor([[0.0, -INF, 0.0, -INF, INF]]).expand(4, 5)
    targets = torch.tensor([1, 2, 3, 4])
    assert rank_of_targets(scores, targets, NONE, NONE).tolist() == [3, 2, 4, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_and_int32_ids_are_taken(dtype):
    scores = torch.tensor([[0, 3, 2, 1]], dtype=dtype)
    ids = torch.tensor([3], dtype=torch.int32)
    seen = torch.tensor([1], dtype=torch.int32)
    assert rank_of_targets(scores, ids, torch.zeros_like(seen), seen).tolist() == [2]


@st.composite
def catalogues(draw):
    """Products that float32 holds exactly, in any order, and 8 bits do not; items that are equal."""
    d, n_items, users = (
        draw(st.sampled_from([16, 32])),
        draw(st.integers(1, 70)),
        draw(st.integers(1, 30)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grain = draw(st.sampled_from([1, 3, 500]))
    table = rng.integers(-grain, grain + 1, (n_items + 1, d)) / 512
    table[rng.integers(0, n_items + 1, n_items)] = table[rng.integers(0, n_items + 1)]
    hidden = rng.integers(-grain, grain + 1, (users, d)) / 512
    targets = rng.integers(1, n_items + 1, users)
    seen = [np.sort(rng.integers(1, n_items + 1, rng.integers(0, 5))) for _ in range(users)]
    return table, hidden, targets, seen, draw(st.sampled_from([0.0, -3.0])), draw(st.integers(0, 9))


needs_native = pytest.mark.skipif(native.load() is None, reason="no C++ compiler")


@needs_native
@settings(max_examples=80, deadline=None)
@given(catalogues())
def test_a_scanned_catalogue_is_ranked_exactly(case):
    table, hidden, targets, seen, bias, most = case
    catalogue = scan.Catalogue(torch.tensor(table), bias)
    offsets = torch.tensor([0, *np.cumsum([len(items) for items in seen])])
    items = torch.tensor(np.concatenate(seen))
    ranks, first, scores = catalogue.scan(
        torch.tensor(hidden), torch.tensor(targets), items, offsets, most
    )
    exact = hidden @ table.T + bias
    assert ranks.tolist() == [
        literal_rank(*user) for user in zip(exact, targets, seen, strict=True)
    ]
    for user, row in enumerate(exact):
        may = [i for i in range(1, len(table)) if i == targets[user] or i not in seen[user]]
        best = sorted(may, key=lambda i: (-row[i], i))[: first.shape[1]]
        nothing = [0] * (first.shape[1] - len(best))
        assert first[user].tolist() == best + nothing
        assert scores[user].tolist() == [row[i] for i in best] + [-INF for _ in nothing]


@needs_native
@pytest.mark.parametrize("d", native.WIDTHS)
def test_a_scan_of_real_numbers_is_right_but_for_what_float32_leaves_open(d):
    rng = np.random.default_rng(d)
    table = (rng.normal(size=(20_000, d)) * rng.exponential(size=(20_000, 1))).astype(np.float32)
    hidden, targets = rng.normal(size=(50, d)).astype(np.float32), rng.integers(1, 20_000, 50)
    nothing = torch.zeros(51, dtype=torch.int64)
    ranks = scan.Catalogue(torch.tensor(table), -7.5).scan(
        torch.tensor(hidden), torch.tensor(targets), nothing[:0], nothing
    )[0]
    scores = hidden.astype(float) @ table.T.astype(float)
    own, room = scores[np.arange(50), targets], 2e-6 * np.abs(scores).max(1)
    above = (scores[:, 1:] > (own + room)[:, None]).sum(1) + 1
    below = (scores[:, 1:] >= (own - room)[:, None]).sum(1)
    assert (above <= ranks.numpy()).all() and (ranks.numpy() <= below).all()
    assert (below - above).mean() < 5  # of 20,000


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("users", [1, 12, 13, 2000])
def test_a_scan_is_the_same_for_any_number_of_users_and_threads(users, threads):
    draw = torch.Generator().manual_seed(0)
    table, hidden = torch.randn(500, 16, generator=draw), torch.randn(2000, 16, generator=draw)
    targets, nothing = torch.arange(2000) % 499 + 1, torch.zeros(2001, dtype=torch.int64)
    whole = scan.Catalogue(table).scan(hidden, targets, nothing[:0], nothing, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        some = scan.Catalogue(table).scan(
            hidden[:users], targets[:users], nothing[:0], nothing[: users + 1], 3
        )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(some, whole, strict=True):
        assert torch.equal(one, other[:users])


@needs_native
def test_a_scan_refuses_what_it_cannot_rank():
    nothing = torch.zeros(2, dtype=torch.int64)
    one, row = torch.ones(1, dtype=torch.int64), torch.ones(1, 16)
    for table in (torch.full((3, 16), float("nan")), torch.full((3, 16), 1e30)):
        with pytest.raises(InputError, match="The table: NaN, or numbers beyond"):
            scan.Catalogue(table)
    with pytest.raises(InputError, match="d = 17 is not in"):
        scan.Catalogue(torch.ones(3, 17))
    catalogue = scan.Catalogue(torch.ones(3, 16))
    with pytest.raises(InputError, match="The hidden states: NaN"):
        catalogue.scan(row * INF, one, nothing[:0], nothing)
    for targets, seen in ((one * 3, nothing[:0]), (-one, nothing[:0]), (one, one * 0)):
        with pytest.raises(InputError, match="must lie between"):
            catalogue.scan(row, targets, seen, nothing)


def test_a_model_ranks_alike_by_both_routes(small_world, monkeypatch):
    run = runs.train(replace(small_world, loss="gbce", theory_start=True))
    test = run.data.split.test
    usual = [
        (ranking.ranks(run.model, test, x), *ranking.first_items(run.model, test, x, 9))
        for x in (True, False)
    ]
    monkeypatch.setattr(ranking, "_SCANNED", 1)
    monkeypatch.setattr(scan, "fast", lambda d: native.load() is not None)
    assert ranking.scans(run.model) == (native.load() is not None)
    monkeypatch.setattr(ranking, "score_in_batches", None)  # not asked
    for exclude, (ranks, items, scores) in zip((True, False), usual, strict=True):
        assert np.array_equal(ranking.ranks(run.model, test, exclude), ranks)
        first = ranking.first_items(run.model, test, exclude, 9)
        assert np.array_equal(first[0], items)
        np.testing.assert_allclose(first[1], scores, rtol=1e-5)


def test_a_run_over_a_large_catalogue_is_judged_by_the_scan(small_world, monkeypatch):
    run = runs.train(replace(small_world, loss="gbce", theory_start=True))
    sums = run.outcome.sums
    monkeypatch.setattr(ranking, "_SCANNED", 1)
    monkeypatch.setattr(scan, "fast", lambda d: native.load() is not None)
    monkeypatch.setattr(runs, "_SUMMED", 5)
    again = runs._evaluation(assemble(run.settings), run.model, {})
    found = json.loads(again["metrics.json"])
    assert np.array_equal(np.load(io.BytesIO(again["ranks.npy"])), run.ranks)
    assert found["ndcg@10"] == run.metrics["ndcg@10"]
    users = 5 if native.load() else len(sums)
    assert found["mean sum of p"] == pytest.approx(sums[:users].mean(), rel=1e-6)
    assert sums[:5].mean() != pytest.approx(sums.mean(), rel=1e-6)


def test_no_users_no_ranks():
    assert rank_of_targets(torch.zeros(0, 4), NONE, NONE, NONE).tolist() == []


def test_scores_rank_where_probabilities_are_all_one():
    scores = torch.tensor([[0.0, 20.0, 30.0, 40.0]])
    target = torch.tensor([3])
    assert int(rank_of_targets(scores, target, NONE, NONE)) == 1
    assert int(rank_of_targets(scores.sigmoid(), target, NONE, NONE)) == 3


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"scores": torch.tensor([[0.0, float("nan"), 1.0]])}, "NaN in rows 0 to 0"),
        ({"targets": torch.tensor([0])}, "targets must lie between 1 and 2"),
        ({"targets": torch.tensor([3])}, "targets must lie between 1 and 2"),
        ({"targets": torch.tensor([1, 2])}, "one target for each of the 1 rows"),
        ({"seen_rows": torch.tensor([-1])}, "seen_rows must lie"),
        ({"seen_rows": torch.tensor([1])}, "seen_rows must lie"),
        ({"seen_items": torch.tensor([-1])}, "seen_items must lie"),
        ({"seen_items": torch.tensor([3])}, "seen_items must lie"),
        ({"seen_rows": NONE}, "one seen row for each seen item"),
    ],
)
def test_a_mistake_is_one_sentence(changed, words):
    good = {
        "scores": torch.zeros(1, 3),
        "targets": torch.tensor([1]),
        "seen_rows": torch.tensor([0]),
        "seen_items": torch.tensor([2]),
    }
    assert int(rank_of_targets(**good)) == 1
    with pytest.raises(InputError, match=words) as error:
        rank_of_targets(**(good | changed))
    assert "\n" not in str(error.value)


def test_what_examine_holds_is_not_everybodys_scores():
    """10,000 users' scores of 30,000 items are 1.2 GB; pieces kept between them kept that as holes."""
    code = """
import resource, gsas_lab, numpy as np
from gsas_lab import encoders, ranking, splits
rng, n, most = np.random.default_rng(0), 10_000, 30_000
items = rng.integers(1, most + 1, 5 * n, dtype=np.int32)
histories = splits.Histories(items, 5 * np.arange(n + 1))
held = splits.Holdout(np.arange(n), histories, rng.integers(1, most + 1, n))
model = encoders.SASRec(most, d=8, max_length=8).eval()
ranking.ranks(model, held.first(512), True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ranking.examine(model, held, True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 300_000  # kB
