"""Claims about the exercises: solutions are right, stubs and nonsense get a polite hint."""

import ast
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gsas_lab import theory
from gsas_lab.lessons import exercises
from gsas_lab.lessons.exercises import gbce_theory as check
from gsas_lab.lessons.exercises import notebooks
from gsas_lab.lessons.exercises.answers import Check, Verdict

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
MODULES = {path.stem: import_module(f"{exercises.__name__}.{path.stem[3:]}") for path in SOLUTIONS}
CHECKS = {  # module.name -> check
    f"{stem[3:]}.{name}": found
    for stem, module in MODULES.items()
    for name, found in vars(module).items()
    if isinstance(found, Check)
}


def _verdicts(path: Path) -> dict[str, Verdict]:
    """Executes the code cells in one namespace; what each `check.…(…)` at an end says."""
    names, verdicts = {}, {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            *lines, last = ast.parse(cell.source).body
            exec(compile(ast.Module(lines, []), path.name, "exec"), names)
            if isinstance(last, ast.Expr):
                verdicts[last.value.func.attr] = eval(ast.unparse(last), names)
            else:
                exec(ast.unparse(last), names)
    return verdicts


# --- the notebooks --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_solution_is_right_and_every_check_has_its_exercise(path):
    verdicts = _verdicts(path)
    assert len(verdicts) >= 3
    assert [v.message for v in verdicts.values() if not v] == []
    assert all(str(verdict).startswith("Right. ") for verdict in verdicts.values())
    own = {name for name, found in vars(MODULES[path.stem]).items() if isinstance(found, Check)}
    assert set(verdicts) == own


def test_there_are_enough_checks_and_each_notebook_of_the_course_has_some():
    assert len(CHECKS) >= 45
    assert {path.stem[:2] for path in SOLUTIONS} == set("01 02 03 04 05 06 07 08".split())
    taught = {path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
    assert {path.stem for path in SOLUTIONS} <= taught


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_stub_fails_politely(path):
    verdicts = _verdicts(NOTEBOOKS / "exercises" / path.name)
    assert set(verdicts) == set(_verdicts(path))
    for verdict in verdicts.values():
        assert not verdict and str(verdict).startswith("Not answered yet. "), verdict


def test_the_committed_exercises_are_what_the_generator_makes(tmp_path):
    (tmp_path / "solutions").symlink_to(NOTEBOOKS / "solutions")
    written = notebooks.write(tmp_path)
    assert [path.name for path in written] == [path.name for path in SOLUTIONS] != []
    for path in written:
        assert path.read_text() == (NOTEBOOKS / "exercises" / path.name).read_text(), path.name
    assert {p.name for p in (NOTEBOOKS / "exercises").glob("*.ipynb")} == {p.name for p in written}


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_exercises_keep_order_and_ids_and_no_solution(path):
    solved, asked = nbformat.read(path, as_version=4), notebooks.strip(path)
    kept = [cell.id for cell in solved.cells if "solution" not in cell.metadata.get("tags", [])]
    assert [cell.id for cell in asked.cells] == kept
    for cell in asked.cells:
        assert "# solution" not in cell.source and "# end" not in cell.source
    for cell in solved.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15
            assert cell.source.count("# solution") == cell.source.count("# end") <= 1


def test_a_stub_keeps_the_last_function_with_its_docstring(tmp_path):
    source = (
        "# solution\ndef helper(x):\n    return x\n\n\n"
        'def f(\n    x, y=1\n):\n    """Says."""\n    return helper(x)\n\n\n# end\ncheck(f)'
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(book, tmp_path / "x.ipynb")
    assert notebooks.strip(tmp_path / "x.ipynb").cells[0].source == (
        'def f(\n    x, y=1\n):\n    """Says."""\n    return ...  # yours\n\n\ncheck(f)'
    )


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_checking_needs_neither_torch_nor_notebook_packages(module):
    code = f"import sys; import {module.__name__}; "
    code += "assert not {'torch', 'nbformat', 'plotly', 'IPython'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- answers that are not right -------------------------------------------------------------------


def _sigma(s):
    return 1 / (1 + np.exp(-s))


def _softplus(s):
    return np.logaddexp(0, s)


def _literal_gbce(p, n, b):
    return -(np.log(_sigma(p) ** b) + np.log(1 - _sigma(n)).sum()) / (len(n) + 1)


def _clamped_gbce(p, n, b):
    pull = b * np.log(max(math.exp(-_softplus(-p)), 1e-10))
    return (_softplus(n).sum() - pull) / (len(n) + 1)


def _branching(s, a, b):
    shifted = s - np.log(b / a)
    return np.where(shifted > 0, _sigma(shifted), np.exp(shifted) / (1 + np.exp(shifted)))


def _root(s, n):
    """The shift at which Σσ is n, by halving."""
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigma(s - middle).sum() > n else (low, middle)
    return low


def _zipf_sum(k, t):
    """Σσ of a user with P ~ 1 / rank over 1,000 items, Theorem 5.1 written out."""
    p = 1 / np.arange(1, 1001)
    p, a = p / p.sum(), k / 999
    b = 1 - t * (1 - a)
    return (b * p / (a - a * p + b * p)).sum()


A1, A256 = 1 / 3415, 256 / 3415

WRONG = {  # check -> (answer, what its hint must mention)
    "gbce_theory.sampling_rate": [
        (256 / 3416, "never be drawn"),
        (A1, "k = 1"),
        (3415 / 256, "Upside down"),
    ],
    "gbce_theory.power_function": [
        (lambda t, a: a * (t * (1 - 1 / a) + 1 / a), "arithmetic is not"),
        (lambda t, a: 1 - t * (1 - a), "arithmetic is not"),
        (lambda t, a: t + (1 - t) * a, "swapped"),
        (lambda t, a: 1 - t * a, "t = 1"),
        (lambda t, a: 1 - t, "t = 1"),
        (lambda t, a: t * a, "t = 0"),
    ],
    "gbce_theory.slope": [
        (lambda s, P, a, b: b * P * (1 - _sigma(s)) - a * (1 - P) * _sigma(s), "other sign"),
        (lambda s, P, a, b: a * _sigma(s) - b * P * (1 - _sigma(s)), "own"),
        (lambda s, P, a, b: a * (1 - P) * _sigma(s) - P * (1 - _sigma(s)), "β"),
        (lambda s, P, a, b: a * (1 - P) / (1 - _sigma(s)) - b * P / _sigma(s), "chain rule"),
        (theory.expected_loss, "loss itself"),
    ],
    "gbce_theory.least_score": [
        (1 / (1 + 19.8), "σ(s)"),
        (-math.log(99), "logit P"),
        (-math.log(99 * 5), "sign"),
        (math.log(0.01 / 0.1 / 0.99), "BCE"),
        (math.log(0.05), "negative"),
        (-math.log10(19.8), "natural"),
        (math.log(19.8), "sign"),
    ],
    "gbce_theory.theorem": [
        (lambda P, a, b: b * P / (a + b * P), "αP"),
        (lambda P, a, b: P / (a - a * P + P), "where is β"),
        (lambda P, a, b: b * P / (a - a * P + P), "below the line"),
        (lambda P, a, b: b * P / (a - a * P), "odds"),
        (theory.converged_logit, "score"),
        (theory.prior_from_probability, "swapped"),
        (lambda P, a, b: 1 / (1 + a / b * (1 / P - 1)), "P = 0"),
    ],
    "gbce_theory.sasrec_says": [
        (0.01, "calibrated"),
        (0.01 / 0.99 * 3415, "odds"),
        (0.01 / (A1 + 0.01), "αP"),
        (0.01 / (0.99 * A256 + 0.01), "k = 256"),
        (0.972, "more digits"),
    ],
    "gbce_theory.offset": [
        (math.log10(3415), "log10"),
        (math.log2(3415), "log2"),
        (-math.log(3415), "sign"),
        (3415, "log scale"),
        (math.log(3415 / 256), "k = 256"),
        (0, "t = 1"),
    ],
    "gbce_theory.inverse": [
        (lambda s, a, b: _sigma(s - np.log(b / a)), "large positive"),  # overflows at −800
        (_branching, "np.where"),
        (lambda s, a, b: 1 / (1 + math.exp(-s) * b / a), "large positive"),  # OverflowError
        (lambda s, a, b: theory.prior_from_probability(1 / (1 + np.exp(-s)), a, b), "before any σ"),
        (
            lambda s, a, b: theory.prior_from_probability(math.exp(-_softplus(-s)), a, b),
            "s = 40",  # nothing overflows, the digits are gone
        ),
        (lambda s, a, b: _sigma(s + np.log(b / a)), "sign"),
        (lambda s, a, b: _sigma(s), "offset"),
        (lambda s, a, b: _sigma(s + np.log(a)), "lacks β"),
        (lambda s, a, b: np.exp(s) * a / b, "passes 1"),
        (lambda s, a, b: _sigma(s - np.log10(b / a)), "log10"),
        (lambda s, a, b: s - np.log(b / a), "logit P"),
    ],
    "gbce_theory.k_needed": [
        (34, "Rounded"),
        (3415 / 99, "whole"),
        (34.15, "1 − P"),
        (1 / 99, "That is α"),
        (100, "1/P"),
    ],
    "gbce_theory.gbce": [
        (_literal_gbce, "log of a power"),
        (_clamped_gbce, "nor a clamp"),
        (lambda p, n, b: b * _softplus(-p) + _softplus(n).sum(), "divides"),
        (lambda p, n, b: (b * _softplus(-p) + _softplus(n).sum()) / len(n), "divide by k"),
        (lambda p, n, b: b * _softplus(-p) + _softplus(n).mean(), "whole bracket"),
        (lambda p, n, b: (_softplus(-p) + _softplus(n).sum()) / (len(n) + 1), "where is β"),
        (lambda p, n, b: b * (_softplus(-p) + _softplus(n).sum()) / (len(n) + 1), "alone"),
        (lambda p, n, b: -(b * _softplus(-p) + _softplus(n).sum()) / (len(n) + 1), "sign"),
        (lambda p, n, b: (b * _softplus(-p) + _softplus(-n).sum()) / (len(n) + 1), "1 − σ"),
        (lambda p, n, b: np.log(np.exp(p) + np.exp(n).sum()) - p, "softmax"),
        (lambda p, n, b: _softplus(n), "shape (5,)"),
    ],
    "gbce_theory.gamma": [
        (lambda s, b: np.log(1 / (_sigma(s) ** -b - 1)), "Name u"),
        (lambda s, b: np.log(_sigma(s) ** -b - 1), "sign"),
        (lambda s, b: b * np.log(_sigma(s)), "−1"),
        (lambda s, b: s, "β = 1"),
        (lambda s, b: s - np.log(b), "limit"),
        (lambda s, b: b * s, "multiple"),
    ],
    "gbce_theory.ties": [(37, "float64"), (16, "e^−16"), (18, "rounds earlier"), (88, "largest")],
    "gbce_theory.collisions": [
        (0.33, "without collisions"),
        (0.33 / 0.67, "odds"),
        (0.33 * 0.67, "shrink"),
    ],
    "gbce_theory.popular_proposal": [
        (0.02 / (1.28 * 0.98 + 0.02), "leaves collisions out"),
        (0.02 / (0.005 + 0.02), "256 negatives"),
        (0.02 / (A256 * 0.98 + 0.02), "uniform"),
        (0.02 / 1.28, "odds"),
        (0.02, "offset"),
    ],
    "gbce_theory.logq": [
        (lambda q, k: -np.log(k * q), "sign"),
        (lambda q, k: np.log(q), "how many draws"),
        (lambda q, k: np.log10(k * q), "log10"),
        (lambda q, k: k * q, "log scale"),
        (lambda q, k: np.log(k), "where is its q"),
    ],
    "gbce_theory.forecast": [
        (1, "ΣP"),
        (890.78999 / 3416, "mean"),
        (11.444568, "k = 256"),
        (3415, "use all"),
    ],
    "gbce_theory.memory_full": [
        (51.2e9, "bytes"),
        (47.6837, "GiB"),
        (12.8, "one byte"),
        (102.4, "gradients"),
    ],
    "gbce_theory.memory_sampled": [
        (13.1072, "one more"),
        (13_158_400, "in bytes"),
        (0.0131584, "GB"),
        (3.2896, "one byte"),
    ],
    "gbce_theory.pairs_ece": [
        ("ABCD", "C again"),
        ("A, B", "D again"),
        (["B", "D"], "A again"),
        ("C", "A again"),
    ],
    "gbce_theory.recalibration": [
        ("ABC", "A again"),
        ("b and c and d", "D again"),
        ({"C"}, "B again"),
    ],
    "overconfidence.alarm": [
        (lambda s: 1.0, "softmax"),
        (lambda s: _sigma(s).mean(), "mean"),
        (lambda s: s.sum(), "through σ"),
        (lambda s: _sigma(s.sum()), "first σ"),
        (lambda s: _sigma(s).max(), "largest"),
        (lambda s: _sigma(-s).sum(), "contrary"),
        (lambda s: _sigma(s).sum(), "logaddexp"),  # overflows at −800
    ],
    "overconfidence.ceiling": [(0.99, "model says"), (39.6, "how many hits"), (1, "of how many")],
    "overconfidence.permuted": [("ABD", "A again"), ("B", "D again"), ("BCD", "C again")],
    "overconfidence.pull": [
        (50, "Upside down"),
        (0.01, "at 0.5"),
        (0.0396, "slope"),
        (0.98, "left"),
    ],
    "training.negative": [
        (lambda d, p: d, "it is the positive"),
        (lambda d, p: d + 1 if d > p else d, "still"),
        (lambda d, p: d + 1 if d == p else d, "twice"),
    ],
    "training.three_sums": [
        ([1, 1, 1], "truth"),
        ([_zipf_sum(64, 1), _zipf_sum(64, 0.75), _zipf_sum(1, 0)], "other way"),
        ([_zipf_sum(1, 0), _zipf_sum(64, 0), _zipf_sum(64, 0)], "t changes β"),
        ([_zipf_sum(1, 0), _zipf_sum(1, 0.75), _zipf_sum(1, 1)], "k changes α"),
    ],
    "training.same_offset": [
        (0.75, "372"),
        (1, "no offset"),
        ((1 - 0.75 * (1 - A256)) / A256 * 256 / 1_271_637, "That is β"),
    ],
    "training.start": [
        (lambda k, b: np.log(k / b), "sign"),
        (lambda k, b: b / (b + k), "probability"),
        (lambda k, b: np.log(b / (b + k)), "odds"),
        (lambda k, b: 0, "fresh"),
        (lambda k, b: math.log10(b / k), "log10"),
    ],
    "training.below_one": [(1, "never drawn"), (0.5, "P = 1")],
    "calibration.ece": [
        (lambda p, h, b: np.mean([abs((h - p)[b == i].mean()) for i in set(b)]), "weigh"),
        (lambda p, h, b: np.abs(h - p).mean(), "single pairs"),
        (lambda p, h, b: (h - p).mean(), "absolute value"),
        (lambda p, h, b: abs(h.mean() - p.mean()), "not at the end"),
        (lambda p, h, b: max(abs((h - p)[b == i].mean()) for i in set(b)), "maximum"),
        (
            lambda p, h, b: sum((b == i).mean() * (h - p)[b == i].mean() ** 2 for i in set(b)),
            "Brier",
        ),
    ],
    "calibration.moved_by_bins": [
        ((0.8, 0.8), "all four"),
        ((0, 0.8), "two bins first"),
        ((0, 0), "pairs at 0.2"),
    ],
    "calibration.brier_parts": [
        ((0.0625, 0.085, 0.24), "weigh"),
        ((0.04, 0.0625, 0.24), "Reliability compares"),
        ((0.25, 0.16, 0.24), "Squares"),
        ((0.0625, 0.04, 0.6), "uncertainty"),
    ],
    "calibration.useless": [
        ([1, 0, 0, 0, 1, 0, 0, 0], "knows something"),
        ([0.5] * 8, "0.25 away"),
        ([0.5, 0.5, 0, 0, 0.5, 0.5, 0, 0], "useless"),
        ([2.0] * 8, "between 0 and 1"),
    ],
    "calibration.sums_to_one": [
        ([0.4, 0.3, 0.2, 0.1], "Right to 0.00"),
        ([0.9, 0.6, 0.3, 0.1], "alarm"),
        ([0.1, 0.2, 0.3, 0.4], "order"),
        ([0.5, 0.3, 0.15, 0.05], "0.10"),
    ],
    "calibration.two_meanings": [
        ((0.1, 0.1), "one bin"),
        ((0, 0), "two bins"),
        ((0.1, 0), "first"),
    ],
    "calibration.temperature": [
        ((0.952574, 0.5), "too *high*"),
        ((0.047426, 0.047426), "Which T"),
        ((0.5, 0.5), "without the 3"),
    ],
    "negatives_and_t.paired_t": [
        (2.5, "ddof=1"),
        (1.0, "sd / √n"),
        (50, "variance"),
        (0.1 / math.sqrt((0.103 + 0.118) / 5), "unpaired"),
        (0.1, "standard error"),
    ],
    "negatives_and_t.holm": [
        ([0.04, 0.16, 0.12, 0.02], "Bonferroni"),
        ([0.03, 0.04, 0.06, 0.02], "end up smaller"),
        ([0.02, 0.03, 0.06, 0.06], "in the order"),
        ([0.01, 0.04, 0.03, 0.005], "correct"),
    ],
    "negatives_and_t.winner": [
        (0.005, "One deviation"),
        (1.965, "In deviations"),
        (0.005 * 1.645, "one cell in twenty"),
        (0.125, "add up"),
    ],
    "negatives_and_t.users_not_seeds": [("ABC", "B again"), ("A", "C again"), ("ACD", "D again")],
    "negatives_and_t.false_alarm": [(1, "expect"), (0.05, "one question"), (0.95**20, "none")],
    "losses_and_architectures.two_by_two": [
        ((0.155, -0.003), "better or worse"),
        ((0.158, 0), "measured"),
        ((0.165, -0.007), "take it off"),
        ((0.155, 0.033), "within BERT4Rec"),
    ],
    "losses_and_architectures.passes": [
        (24, "fifth as much"),
        (4.8, "other way"),
        (30, "four fifths"),
    ],
    "losses_and_architectures.logq_gap": [(-1, "log10"), (0.1, "log scale"), (10, "log scale")],
    "losses_and_architectures.history": [("AB", "D again"), ("ABCD", "C again"), ("D", "A again")],
    "losses_and_architectures.level": [("AC", "A again"), ("BC", "B again"), ("CD", "D again")],
    "state_of_the_art.mismatches": [("B", "D again"), ("BDE", "E again"), ("ABD", "A again")],
    "state_of_the_art.ideal": [(10, "alike"), (1, "one target"), (6.5550, "natural")],
    "state_of_the_art.hundred": [(51, "whole catalogue"), (1.46413, "itself"), (50, "of 100")],
    "your_data.offset": [
        (lambda s, n: math.log(_sigma(s).sum() / n), "in proportion"),
        (lambda s, n: _sigma(s).sum() - n, "counts"),
        (lambda s, n: s.mean(), "where are"),
        (lambda s, n: -_root(s, n), "to add"),
        (lambda s, n: _root(s, n / len(s)), "share"),
    ],
    "your_data.slope_two": [((2, -8), "too steep"), ((0.5, -16), "stays"), ((1, -8), "old fit")],
    "your_data.rows_by_clicks": [("A", "D again"), ("ABD", "B again"), ("ACD", "C again")],
    "your_data.profit": [
        ((0.97, 0.01), "costs"),
        ((0.92, 0.04), "loss"),
        ((0.92, 0.92), "by P"),
        ((0.9215, 0.0095), "subtracted"),
    ],
    "your_data.k_behind": [(1669, "e^offset"), (1, "10.8"), (6738.4, "logarithm")],
}
CASES = [(name, *case) for name, cases in WRONG.items() for case in cases]


def _generic(found) -> set[str]:
    """What the check says of numbers and functions that nobody would give."""
    odd = [1e30, -1e30, "?", lambda *row: 1e30, lambda *row: -1e30]
    return {found(answer).message for answer in odd}


@pytest.mark.parametrize(
    "name, answer, mentions", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_typical_mistake_gets_its_own_hint(name, answer, mentions):
    found = CHECKS[name]
    verdict = found(answer)
    assert not verdict and verdict.message.startswith("Not yet. ")
    assert mentions in verdict.message
    assert verdict.message not in _generic(found)


def test_every_check_has_typical_mistakes_and_its_formula_or_claim_in_the_docstring():
    assert set(WRONG) == set(CHECKS)
    for found in CHECKS.values():
        assert len(found.task) > 40


def _raises(*row):
    raise RuntimeError("two\nlines")


def _leaves(*row):
    sys.exit(3)


class _Hostile:
    def __getattribute__(self, name):
        raise OSError(name)


GARBAGE = [
    None, ..., "x", "", b"x", math.nan, math.inf, -math.inf, True, 1j, [], {}, [None], [[1, 2], [3]],
    object(), _Hostile(), int, np.array([1.0, 2.0]), np.array("x"), 10**400, _raises, _leaves,
    lambda: 1, lambda *row: None, lambda *row: ..., lambda *row: "x", lambda *row: math.nan,
    lambda *row: np.ones(3), lambda *row: [], lambda *row: 1 // 0, lambda *row: row[0] / 0,
    lambda *row: row[99], lambda *row: 1j, lambda *row: 10.0**row[0] ** 999,
]  # fmt: skip


@pytest.mark.parametrize("found", CHECKS.values(), ids=CHECKS)
def test_nothing_that_is_given_raises(found):
    for answer in GARBAGE:
        verdict = found(answer)
        assert verdict.right is False and not verdict
        assert repr(verdict) == verdict._repr_markdown_() == verdict.message
        assert verdict.message.startswith(("Not yet. ", "Not answered yet. "))
        assert "\n" not in verdict.message
    assert found(...) == found(None) and found(None).message.startswith("Not answered yet. ")


def test_an_answer_may_be_any_kind_of_number_or_callable():
    assert check.memory_full(np.float32(51.2))
    assert check.k_needed(35.0) and check.k_needed(np.int64(35))
    assert check.offset(np.array(8.136))
    assert check.theorem(theory.converged_probability)
    assert check.logq(lambda q, k: math.log(q) + math.log(k))
    assert check.pairs_ece("d, b and A") and check.pairs_ece({"A", "B", "D"})


def test_a_function_that_writes_into_its_arguments_spoils_no_later_check():
    def spoil(positive, negatives, beta):
        negatives[:] = math.nan
        return 0.0

    check.gbce(spoil)
    right = _verdicts(SOLUTIONS[1])["gbce"]
    assert right, right
