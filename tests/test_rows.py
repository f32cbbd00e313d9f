"""Tables of which a step touches few rows: their gradients are exact, their optimisers literal."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gsas_lab import rows, runs, training
from gsas_lab.baselines import MF
from gsas_lab.batches import Batch
from gsas_lab.encoders import SASRec
from gsas_lab.errors import InputError
from gsas_lab.experiment import assemble
from gsas_lab.kernels import native
from gsas_lab.losses import GBCE, LOSSES, LogQ
from gsas_lab.samplers import SAMPLERS

N, D, LR, DECAY = 40, 24, 0.02, 0.3
RATES = [LR * (1 + step % 3) for step in range(30)]  # a schedule: decay must follow it


@pytest.fixture(params=["native", "stock"])
def route(request, monkeypatch):
    if request.param == "stock":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("no compiler")
    return request.param


def table():
    return nn.Parameter(torch.randn(N, D, generator=torch.Generator().manual_seed(0)))


def gradients(some=True):
    """For each step named rows, which repeat, and their values."""
    draw = torch.Generator().manual_seed(1)
    for _ in RATES:
        named = torch.randint(0, N, (25,), generator=draw) if some else torch.arange(N)
        yield named, torch.randn(len(named), D, generator=draw)


def sparse(named, values):
    return torch.sparse_coo_tensor(
        named[None], values, (N, values.shape[1]), check_invariants=False
    )


def dense(named, values):
    return torch.zeros(N, D).index_add_(0, named, values)


def moved(kind, weight_decay, some=True):
    weight = table()
    optimizer = rows.RowOptimizer(kind, [weight], LR, weight_decay)
    for rate, given in zip(RATES, gradients(some), strict=True):
        weight.grad = sparse(*given)
        optimizer.step(rate)
    optimizer.wake()
    return weight.detach()


def adamw(weight, weight_decay):
    return torch.optim.AdamW([weight], lr=LR, weight_decay=weight_decay)


@pytest.mark.parametrize("weight_decay", [0.0, DECAY])
def test_where_every_row_is_touched_lazy_adam_is_adamw(route, weight_decay):
    """To rounding: it errs from AdamW in float64 as torch's own in float32 does."""
    found = {}
    for kind in (torch.float32, torch.float64):
        weight = nn.Parameter(table().detach().to(kind))
        optimizer = adamw(weight, weight_decay)
        for rate, given in zip(RATES, gradients(some=False), strict=True):
            weight.grad = dense(*given).to(kind)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        found[kind] = weight.detach()
    truth = found[torch.float64]
    ours, theirs = (
        float((x.double() - truth).abs().max())
        for x in (moved("lazy_adam", weight_decay, some=False), found[torch.float32])
    )
    assert ours <= 2 * theirs + 1e-6, (ours, theirs)


def test_each_row_runs_adamw_on_its_own_clock_and_decay_misses_no_step(route):
    start, steps = table().detach(), list(gradients())
    for row in range(N):
        weight = nn.Parameter(start[row].clone())
        optimizer = adamw(weight, 0.0)
        for rate, (named, values) in zip(RATES, steps, strict=True):
            with torch.no_grad():
                weight *= 1 - rate * DECAY
            if (named == row).any():
                weight.grad = values[named == row].sum(0)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
        torch.testing.assert_close(
            moved("lazy_adam", DECAY)[row], weight.detach(), rtol=2e-5, atol=1e-5
        )


def test_adagrad_is_row_wise(route):
    weight, total = table().detach(), torch.zeros(N)
    for rate, given in zip(RATES, gradients(), strict=True):
        gradient = dense(*given)
        total += gradient.square().mean(1)
        weight *= 1 - rate * DECAY
        weight -= rate * gradient / (total.sqrt() + rows.EPS)[:, None]
    torch.testing.assert_close(moved("adagrad", DECAY), weight, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad"])
def test_any_number_of_threads_gives_the_same_bits(kind):
    found, threads = [], torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(moved(kind, DECAY))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def first_step(settings):
    """The gradients of one step: (step, gradient of each weight by name)."""
    made = assemble(settings)
    step = training.Step(made, made.model())
    step.seed(0, 0)
    histories = made.split.train
    rng = torch.Generator().manual_seed(3)
    length = settings.max_length
    items = torch.stack(
        [torch.from_numpy(histories[user][: length + 1]) for user in range(20)]
    ).long()
    items[:, -1:][torch.rand(20, 1, generator=rng) < 0.3] = 0  # padding, too
    batch = Batch(
        items[:, :-1], torch.arange(length).expand(20, -1),
        torch.arange(1, 21)[:, None].expand(-1, length), items[:, 1:],
    )  # fmt: skip
    step.forward(batch).backward()
    return step, {
        name: gradient(w, step.unsummed.get(w)) for name, w in step.model.named_parameters()
    }


def gradient(weight, pairs):
    """A weight's, what the native route has not summed of it included."""
    if pairs is None:
        return weight.grad
    position, slope = pairs.pairs[:, 0].long(), pairs.pairs[:, 1].contiguous().view(torch.float32)
    named = torch.arange(len(weight)).repeat_interleave(pairs.begin.diff())
    count = len(named)  # padding has no pairs
    values = slope[:count, None] * pairs.hidden[position[:count]]
    found = torch.sparse_coo_tensor(named[None], values, weight.shape, check_invariants=False)
    return found if weight.grad is None else found + weight.grad


@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad"])
@pytest.mark.parametrize("given", [None, "sparse", "dense"])
def test_a_gradient_in_pairs_moves_rows_as_the_sum_does(kind, given):
    """given: what autograd has of the table's gradient beside. The same bits for 1 and 3 threads."""
    if native.load() is None:
        pytest.skip("no compiler")
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=draw)
    positives = torch.randint(0, 9, (50,), generator=draw)  # some are padding, most rows have none
    negatives = torch.randint(20, N, (50, 7), generator=draw)
    beside = sparse(torch.arange(8, 20), torch.randn(12, 16, generator=draw))
    beside = {None: None, "sparse": beside, "dense": beside.to_dense()}[given]

    def trained(in_pairs):
        weight = nn.Parameter(torch.linspace(-1, 1, N * 16).view(N, 16))
        optimizer = rows.RowOptimizer(kind, [weight], LR, DECAY)
        for _ in range(3):
            arguments = False, 0.5, hidden, weight, positives, negatives, None
            own = native.sampled(*arguments, summed=not in_pairs)[2]
            if in_pairs:
                weight.grad = beside
                optimizer.step(LR, {weight: own})
            else:
                touched = own.abs().sum(1).nonzero()[:, 0]
                own = sparse(touched, own[touched])
                weight.grad = own if beside is None else beside + own
                optimizer.step(LR)
        return weight.detach()

    found, threads = [], torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(trained(in_pairs=True))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], trained(in_pairs=False), rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_called_in_its_own_way_leaves_no_pairs():
    class Twice(GBCE):
        def __call__(self, *given, **more):
            return 2 * super().__call__(*given, **more)

    class Renamed(GBCE):
        words = "mine"

    assert [loss(0.5).leaves_pairs for loss in (GBCE, Renamed, Twice)] == [True, True, False]
    assert not LogQ(GBCE(0.5), 0.1, 9).leaves_pairs, "whose table has one more column"


CASES = [("gbce", name, False) for name in SAMPLERS] + [
    (name, "shared-sequence", False) for name in LOSSES if not LOSSES[name].whole
] + [("gbce", "popularity", True), ("sampled_softmax", "shared-batch", True)]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("loss", "sampler", "logq"), CASES)
def test_the_gradient_of_rows_is_the_dense_one(small_world, loss, sampler, logq, tied):
    settings = replace(
        small_world,
        loss=loss,
        sampler=sampler,
        logq=logq,
        tied=tied,
        t=0.5,
        max_length=8,
        dropout=0.0,
    )
    of_table = first_step(replace(settings, table_optimizer="dense"))[1]
    step, of_rows = first_step(replace(settings, table_optimizer="lazy_adam"))
    assert len(step.rows.weights) == (1 if tied else 2)
    of_own = not logq and loss in ("gbce", "bce", "sampled_softmax") and "shared" not in sampler
    assert len(step.unsummed) == (of_own and native.load() is not None)
    for name, wanted in of_table.items():
        found = of_rows[name]
        if wanted is None:
            assert found is None
        elif found.is_sparse:
            assert "item_embedding" in name or "output_embedding" in name
            found = found.to_dense()
        else:
            assert found.shape != (61, 16), "a dense gradient of the table"
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_a_loss_over_the_whole_catalogue_trains_as_with_the_dense_optimiser(small_world):
    settings = replace(small_world, loss="expected_gbce", dropout=0.0, weight_decay=0.1, tied=True)
    losses = [
        runs.train(replace(settings, table_optimizer=kind)).history["loss"].tolist()
        for kind in ("dense", "lazy_adam")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad"])
@pytest.mark.parametrize("model", ["sasrec", "mf"])
@pytest.mark.parametrize("sampler", ["shared-batch", "positive-excluded"])
def test_a_stopped_training_goes_on_bit_for_bit(small_world, stopped, kind, model, sampler):
    settings = replace(
        small_world, table_optimizer=kind, loss="gbce", t=0.5, sampler=sampler, model=model,
        weight_decay=0.2, cooldown=0.5, lr=0.01,
    )  # fmt: skip
    whole = runs.train(settings).model.state_dict()
    stopped(settings)
    again = runs.train(settings).model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_auto_takes_rows_for_a_large_catalogue_and_keeps_small_ones_as_they_were(monkeypatch):
    cpu, few, many = torch.device("cpu"), rows.FROM_ITEMS - 1, rows.FROM_ITEMS
    assert rows.choose("auto", few, False, cpu) == "dense"
    assert rows.choose("auto", many, False, cpu) == "lazy_adam"
    assert rows.choose("auto", many, True, cpu) == "dense"
    assert rows.choose("auto", many, False, torch.device("cuda")) == "dense"
    assert rows.choose("adagrad", 10, True, cpu) == "adagrad"


def test_a_table_of_positions_or_users_of_the_same_length_is_none_of_items():
    for tied in (True, False):
        model = SASRec(n_items=15, d=8, max_length=16, tied=tied)
        of_items = {model.item_embedding, model.output_embedding}
        assert set(rows.tables(model)) == of_items and len(rows.tables(model)) == 2 - tied
    model = MF(n_users=16, n_items=15, d=8)
    assert rows.tables(model) == [model.output_embedding]


@pytest.mark.parametrize("length", [3, 4000])  # a sort, or marks
def test_only_the_rows_that_are_read(length):
    whole = nn.Embedding(10_001, 4, sparse=True)
    draw = torch.Generator().manual_seed(0)
    positives = torch.randint(0, 10_001, (length,), generator=draw)
    negatives = torch.randint(1, 10_001, (length, 5), generator=draw)
    named, small, positive, negative = rows.only(whole, positives, negatives)
    assert named[0] == 0 and (named.diff() > 0).all() and torch.equal(small, whole.weight[named])
    assert torch.equal(named[positive], positives) and torch.equal(named[negative], negatives)
    small.sum().backward()
    assert whole.weight.grad.is_sparse and whole.weight.grad._nnz() == len(named)


def test_a_table_that_does_not_fit_is_refused_before_it_is_made():
    cpu = torch.device("cpu")
    rows.check_memory(1_271_638, 128, 1, "lazy_adam", cpu, room=2e9)
    with pytest.raises(
        InputError, match=r"3 tables of 1,271,639 rows × d = 256 need 3.9 GB.*adagrad"
    ):
        rows.check_memory(1_271_638, 256, 1, "lazy_adam", cpu, room=3e9)
    with pytest.raises(InputError, match=r"2 tables .* a smaller d, or tied = True\.$"):
        rows.check_memory(10**9, 64, 2, "adagrad", cpu)


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(small_world):
    small_world = replace(small_world, d=16, max_length=12)
    for change in ({}, {"blocks": 3}, {"model": "mf", "loss": "bpr"}):
        made = assemble(replace(small_world, **change))
        assert made.weights == sum(weight.numel() for weight in made.model().parameters())
    for change in ({"d": 10**6}, {"max_length": 10**10}, {"d": 4096, "blocks": 10**6}):
        with pytest.raises(InputError, match="weights and their gradients need [0-9,.]+ GB, and"):
            runs.train(replace(small_world, **change))


def test_a_decay_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="leaves nothing of a row"):
        rows.RowOptimizer("adagrad", [table()], 0.5, 2.0)
