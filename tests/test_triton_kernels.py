"""The Triton kernels against the literal float64 reference: on CUDA, or else, since kernels are
bound to one or the other when they are defined, in a child process with Triton's interpreter.

The budget of every error: 1e-5 of the largest entry, and 1e-12.
"""

import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import version

import pytest
import reference
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gsas_lab import rows
from gsas_lab.kernels import fused, native, triton_kernels

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
INSTALLED = importlib.util.find_spec("triton") is not None
N_ITEMS = 12
RULES = {
    "gbce": lambda p, n: reference.gbce(p, n, 0.3),
    "softmax": reference.sampled_softmax,
    "bpr": lambda p, n: F.softplus(n - p[:, None]).mean(),
}

needs_triton = pytest.mark.skipif(
    not INSTALLED, reason="Triton, which comes with a CUDA build of torch, is not installed"
)
each_rule = pytest.mark.parametrize("rule", RULES)


def case(k, d, top=1.0, positions=7, n_items=N_ITEMS, seed=0):
    """Hidden states and a table whose scores reach ±top, items with collisions and repeats."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, d, generator=g)
    table = torch.randn(n_items + 1, d, generator=g)
    positives = torch.randint(1, n_items + 1, (positions,), generator=g)
    negatives = torch.randint(1, n_items + 1, (positions, k), generator=g)
    negatives[0] = positives[0]
    items = torch.cat([positives[:, None], negatives], 1)
    scale = (top / reference.scores(hidden, table, items).abs().max().float()).sqrt()
    return [x.to(DEVICE) for x in (hidden * scale, table * scale, positives, negatives)]


def sampled(rule, hidden, table, positives, negatives, bias):
    tensors = hidden, table, positives, negatives, bias
    return triton_kernels.sampled(rule == "softmax", 0.3, *tensors, rule == "bpr")


def literal(rule, hidden, table, positives, negatives, bias=None):
    """What `sampled` must return, positions of padding left out, by autograd in float64."""
    bias = torch.zeros((), device=DEVICE) if bias is None else bias
    inputs = [x.double().detach().requires_grad_() for x in (hidden, table, bias)]
    real = positives != 0
    items = torch.cat([positives[:, None], negatives], 1)[real]
    every = reference.scores(inputs[0][real], inputs[1], items) + inputs[2]
    loss = RULES[rule](every[:, 0], every[:, 1:])
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def assert_close(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        error = (ours.double() - theirs).abs().max()
        assert error <= 1e-5 * theirs.abs().max() + 1e-12


class Watched(TorchDispatchMode):
    """The largest tensor that an operator returns; an operator that asks the host is an error."""

    largest = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive")
        found = operator(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().nbytes():
                self.largest = max(self.largest, each.untyped_storage().nbytes())
        return found


class TestKernels:
    __test__ = INSTALLED and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")

    @each_rule
    @pytest.mark.parametrize("k", [1, 16, 49])
    @pytest.mark.parametrize("d", [8, 24, 128])
    @pytest.mark.parametrize("top", [1.0, 120.0])
    def test_the_loss_and_its_gradients_equal_the_literal_form(self, rule, k, d, top):
        inputs = case(k, d, top)
        for bias in (None, torch.tensor(-1.5, device=DEVICE)):
            got = sampled(rule, *inputs, bias)
            assert_close(got, literal(rule, *inputs, bias))

    @each_rule
    def test_the_gradient_lives_where_scores_are_beyond_300_and_wrong(self, rule):
        item = torch.arange(N_ITEMS + 1, device=DEVICE)
        size = 40.0 + item[:, None] / 9  # scores of 320 and more
        hidden, table = torch.ones(6, 8, device=DEVICE), size.repeat(1, 8)
        table[::2] *= -1
        positives, negatives = item[2::2], item[1::2].repeat(6, 3)
        for sign in (1, -1):  # the negatives far above the positive, then far below
            inputs = (hidden, sign * table, positives, negatives)
            got = sampled(rule, *inputs, None)
            assert_close(got, literal(rule, *inputs))
            assert (got[1] != 0).all() == (sign == 1)

    @pytest.mark.parametrize("k", [1, 49])
    def test_the_losses_of_equal_scores_are_logarithms_of_small_numbers(self, k):
        hidden, *rest = case(k, 8)
        equal = {"gbce": math.log(2) * (0.3 + k) / (k + 1), "softmax": math.log(k + 1)}
        for rule, loss in {**equal, "bpr": math.log(2)}.items():
            got = sampled(rule, 0 * hidden, *rest, None)
            assert got[0].item() == pytest.approx(loss, rel=1e-6)

    @each_rule
    def test_a_k_beyond_a_block_and_a_single_column(self, rule):
        inputs = case(1100, 1, positions=2)
        got = sampled(rule, *inputs, None)
        assert_close(got, literal(rule, *inputs))

    @each_rule
    def test_bfloat16_loses_nothing_but_the_rounding_of_its_inputs(self, rule):
        hidden, table, *items = case(16, 24, 120.0)
        for narrow in ((hidden.bfloat16(), table), (hidden.bfloat16(), table.bfloat16())):
            bias = torch.tensor(-1.5, dtype=torch.bfloat16, device=DEVICE)
            got = sampled(rule, *narrow, *items, bias)
            assert_close(got, literal(rule, *narrow, *items, bias))

    @each_rule
    def test_padding_counts_for_nothing_whatever_its_hidden_state_and_negatives(self, rule):
        hidden, table, positives, negatives = case(16, 24)
        bias = torch.tensor(-1.5, device=DEVICE)
        negatives[3, :2] = 0  # a drawn padding row is a row like any other
        positives[[1, 6]], hidden[[1, 6]], negatives[1] = 0, torch.nan, 0
        inputs = (hidden, table, positives, negatives, bias)
        got = sampled(rule, *inputs)
        assert got[1][[1, 6]].abs().sum() == 0
        assert_close(got, literal(rule, *inputs))
        nothing = sampled(rule, hidden, table, 0 * positives, *inputs[3:])
        assert all((x == 0).all() for x in nothing)

    @each_rule
    def test_a_table_with_more_rows_than_pairs_and_long_keys(self, rule, monkeypatch):
        monkeypatch.setattr(triton_kernels, "_SHORT", 0)
        inputs = case(3, 8, n_items=60)
        got = sampled(rule, *inputs, None)
        assert_close(got, literal(rule, *inputs))
        drawn = torch.cat([inputs[2], inputs[3].flatten()])
        assert set(got[2].abs().sum(1).nonzero().flatten().tolist()) <= set(drawn.tolist())

    @each_rule
    def test_a_second_call_returns_the_same_bits(self, rule):
        inputs = case(49, 24)
        first, second = (sampled(rule, *inputs, None) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @each_rule
    def test_a_loss_takes_the_kernels_and_neither_builds_p_k_d_nor_asks_the_host(
        self, rule, monkeypatch
    ):
        monkeypatch.setattr(triton_kernels, "available", lambda _: True)
        called, kernel = [], triton_kernels.sampled

        def spied(*given, **more):  # the interpreter's own copies are not the library's
            called.append(given)
            with torch.utils._python_dispatch._disable_current_modes():
                return kernel(*given, **more)

        monkeypatch.setattr(triton_kernels, "sampled", spied)
        hidden, table, positives, negatives = case(49, 24)
        hidden.requires_grad_(), table.requires_grad_()
        positives[2] = 0
        loss = {
            "gbce": lambda *given: fused.gbce(*given, 0.3),
            "softmax": fused.sampled_softmax,
            "bpr": fused.bpr,
        }[rule]
        with Watched() as watched:
            value = loss(hidden, table, positives, negatives)  # and its gradients
        gradients = torch.autograd.grad(value, (hidden, table))
        assert len(called) == 1 and 0 < watched.largest < 4 * negatives.numel() * 24 / 2
        wanted = literal(rule, hidden, table, positives, negatives)
        assert_close((value.detach(), *gradients), wanted[:3])

    @pytest.mark.parametrize("kind", ["lazy_adam", "adagrad"])
    @pytest.mark.parametrize("d", [8, 24, 120])
    def test_rows_move_as_by_stock_operators(self, kind, d, monkeypatch):
        g = torch.Generator().manual_seed(d)
        start = torch.randn(50, d, generator=g).to(DEVICE)
        steps = []
        for most in (1, 7, 200, 40):  # so that row 0 has more values than a tile
            named = torch.randint(0, 30, (most,), generator=g)
            named[most // 3 :] = 0
            steps.append((named.to(DEVICE), torch.randn(most, d, generator=g).to(DEVICE)))
        monkeypatch.setattr(native, "load", lambda: None)
        called, kernel, moved = [], triton_kernels.update, {}
        monkeypatch.setattr(triton_kernels, "update", lambda *a: (called.append(a), kernel(*a)))
        for by_triton in (True, False):
            monkeypatch.setattr(triton_kernels, "available", lambda _, by=by_triton: by)
            weight = start.clone()
            optimizer = rows.RowOptimizer(kind, [weight], 0.1, 0.01)
            for named, values in steps:
                weight.grad = torch.sparse_coo_tensor(named[None], values, weight.shape)
                optimizer.step(0.1)
            moved[by_triton] = [weight, *optimizer.state[0].values()]
        assert len(called) == len(steps)
        for ours, stock in zip(moved[True], moved[False], strict=True):
            assert (ours - stock).abs().max() <= 2e-6 * stock.abs().max()
        untouched = torch.ones(50, dtype=torch.bool, device=DEVICE)
        untouched[torch.cat([named for named, _ in steps])] = False
        assert untouched.sum() > 15 and torch.equal(moved[True][0][untouched], start[untouched])


@needs_triton
@pytest.mark.skipif(CUDA, reason="these checks ran on CUDA")
def test_the_kernels_in_the_interpreter():
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("needs CUDA, or Triton 3.7: older interpreters refuse numpy 2.4")
    alone = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # arrays too small to be shared
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider",
         f"{__file__}::TestKernels"],
        env=os.environ | alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_triton
@pytest.mark.parametrize("kind, key", [("fp32", "i16"), ("bf16", "i32")])
@each_rule
def test_the_kernels_compile_for_hopper_without_a_gpu(rule, kind, key, monkeypatch, tmp_path):
    """The interpreter runs what the compiler refuses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {
        "hidden": kind, "table": kind, "items": key, "bias": "fp32", "slopes": "fp32",
        "totals": "fp32", "d_hidden": "fp32", "d_table": "fp32", "order": "i64", "bounds": "i64",
    }  # fmt: skip
    types = {name: f"*{kind}" for name, kind in pointers.items()}
    types |= {"beta": "fp32", "n_rows": "i32"}
    constants = dict(SOFTMAX=rule == "softmax", PAIRWISE=rule == "bpr")
    constants |= dict(K=256, D=120, BLOCK=32, BLOCK_D=128, BLOCK_K=1024)
    for kernel in (triton_kernels._each_position, triton_kernels._each_item):
        names = kernel.arg_names
        own = {(names.index(name),): constants[name] for name in names if name in constants}
        source = ASTSource(kernel, {name: types.get(name, "constexpr") for name in names}, own)
        compiled = compile(source, target=GPUTarget("cuda", 90, 32))
        assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


@needs_triton
@pytest.mark.parametrize("kind", ["lazy_adam", "adagrad"])
def test_the_rows_kernel_compiles_for_hopper_without_a_gpu(kind, monkeypatch, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, names = triton_kernels._each_row, triton_kernels._each_row.arg_names
    constants = dict(D=120, BLOCK=4, BLOCK_D=128)
    constants |= dict(mean=None, root=None) if kind == "adagrad" else {}
    types = {name: "*i64" if name in ("rows", "begin", "order") else "*fp32" for name in names}
    types |= dict.fromkeys(("mean_rate", "square_rate", "eps"), "fp32")
    types |= dict.fromkeys(constants, "constexpr")
    own = {(names.index(name),): value for name, value in constants.items()}
    compiled = compile(ASTSource(kernel, types, own), target=GPUTarget("cuda", 90, 32))
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


@pytest.mark.skipif(not CUDA, reason="needs CUDA")
@needs_triton
@each_rule
def test_a_cuda_graph_captures_the_call_and_replays_it_with_new_inputs(rule):
    bias = torch.tensor(-1.5, device=DEVICE)
    held = [*case(49, 24, positions=300, n_items=900), bias]
    sampled(rule, *held)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampled(rule, *held)
    for seed in (1, 2):
        fresh = [*case(49, 24, positions=300, n_items=900, seed=seed), bias - seed]
        fresh[2][seed::7] = 0  # padding
        for old, new in zip(held, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        again = sampled(rule, *fresh)
        assert all(torch.equal(a, b) for a, b in zip(captured, again, strict=True))
        assert_close(captured, literal(rule, *fresh))


def test_only_tensors_on_cuda_have_kernels_and_triton_is_no_requirement(monkeypatch):
    assert not triton_kernels.available(torch.zeros(1))
    assert triton_kernels.available(torch.zeros(1, device=DEVICE)) == (CUDA and INSTALLED)
    monkeypatch.setitem(sys.modules, "triton", None)  # its import fails
    without = runpy.run_path(triton_kernels.__file__)
    assert not without["available"](torch.zeros(1, device=DEVICE))
