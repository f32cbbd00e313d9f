"""Claims about the exercises: solutions are right, stubs and nonsense get a polite hint."""

import ast
import inspect
import math
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gsas_lab import theory
from gsas_lab.lessons import exercises
from gsas_lab.lessons.exercises import Verdict

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
CHECKS = {name: check for name, check in vars(exercises).items() if name.startswith("check_")}


def _verdicts(path: Path) -> dict[str, Verdict]:
    """Executes the code cells in one namespace; what each `exercises.check_…(…)` at an end says."""
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
    assert len(verdicts) >= 12
    assert [v.message for v in verdicts.values() if not v] == []
    assert all(str(verdict).startswith("Right. ") for verdict in verdicts.values())
    assert set(verdicts) == set(CHECKS)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_stub_fails_politely(path):
    verdicts = _verdicts(NOTEBOOKS / "exercises" / path.name)
    assert set(verdicts) == set(_verdicts(path))
    for verdict in verdicts.values():
        assert not verdict and str(verdict).startswith("Not answered yet. "), verdict


def test_the_committed_exercises_are_what_the_generator_makes(tmp_path):
    (tmp_path / "solutions").symlink_to(NOTEBOOKS / "solutions")
    written = exercises.write(tmp_path)
    assert [path.name for path in written] == [path.name for path in SOLUTIONS] != []
    for path in written:
        assert path.read_text() == (NOTEBOOKS / "exercises" / path.name).read_text(), path.name
    assert {p.name for p in (NOTEBOOKS / "exercises").glob("*.ipynb")} == {p.name for p in written}


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_exercises_keep_order_and_ids_and_no_solution(path):
    solved, asked = nbformat.read(path, as_version=4), exercises.strip(path)
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
    assert exercises.strip(tmp_path / "x.ipynb").cells[0].source == (
        'def f(\n    x, y=1\n):\n    """Says."""\n    return ...  # yours\n\n\ncheck(f)'
    )


def test_checking_needs_neither_torch_nor_notebook_packages():
    code = "import sys; from gsas_lab.lessons import exercises; "
    code += "print({'torch', 'nbformat'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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


A1, A256 = 1 / 3415, 256 / 3415

WRONG = {  # check -> (answer, what its hint must mention)
    "sampling_rate": [(256 / 3416, "never be drawn"), (A1, "k = 1"), (3415 / 256, "Upside down")],
    "power_function": [
        (lambda t, a: a * (t * (1 - 1 / a) + 1 / a), "arithmetic is not"),
        (lambda t, a: 1 - t * (1 - a), "arithmetic is not"),
        (lambda t, a: t + (1 - t) * a, "swapped"),
        (lambda t, a: 1 - t * a, "t = 1"),
        (lambda t, a: 1 - t, "t = 1"),
        (lambda t, a: t * a, "t = 0"),
    ],
    "slope": [
        (lambda s, P, a, b: b * P * (1 - _sigma(s)) - a * (1 - P) * _sigma(s), "other sign"),
        (lambda s, P, a, b: a * _sigma(s) - b * P * (1 - _sigma(s)), "own"),
        (lambda s, P, a, b: a * (1 - P) * _sigma(s) - P * (1 - _sigma(s)), "β"),
        (lambda s, P, a, b: a * (1 - P) / (1 - _sigma(s)) - b * P / _sigma(s), "chain rule"),
        (theory.expected_loss, "loss itself"),
    ],
    "least_score": [
        (1 / (1 + 19.8), "σ(s)"),
        (-math.log(99), "logit P"),
        (-math.log(99 * 5), "sign"),
        (math.log(0.01 / 0.1 / 0.99), "BCE"),
        (math.log(0.05), "negative"),
        (-math.log10(19.8), "natural"),
        (math.log(19.8), "sign"),
    ],
    "theorem": [
        (lambda P, a, b: b * P / (a + b * P), "αP"),
        (lambda P, a, b: P / (a - a * P + P), "where is β"),
        (lambda P, a, b: b * P / (a - a * P + P), "below the line"),
        (lambda P, a, b: b * P / (a - a * P), "odds"),
        (theory.converged_logit, "score"),
        (theory.prior_from_probability, "swapped"),
        (lambda P, a, b: 1 / (1 + a / b * (1 / P - 1)), "P = 0"),
    ],
    "sasrec_says": [
        (0.01, "calibrated"),
        (0.01 / 0.99 * 3415, "odds"),
        (0.01 / (A1 + 0.01), "αP"),
        (0.01 / (0.99 * A256 + 0.01), "k = 256"),
        (0.972, "more digits"),
    ],
    "offset": [
        (math.log10(3415), "log10"),
        (math.log2(3415), "log2"),
        (-math.log(3415), "sign"),
        (3415, "log scale"),
        (math.log(3415 / 256), "k = 256"),
        (0, "t = 1"),
    ],
    "inverse": [
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
    "k_needed": [
        (34, "Rounded"),
        (3415 / 99, "whole"),
        (34.15, "1 − P"),
        (1 / 99, "That is α"),
        (100, "1/P"),
    ],
    "gbce": [
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
    "gamma": [
        (lambda s, b: np.log(1 / (_sigma(s) ** -b - 1)), "Name u"),
        (lambda s, b: np.log(_sigma(s) ** -b - 1), "sign"),
        (lambda s, b: b * np.log(_sigma(s)), "−1"),
        (lambda s, b: s, "β = 1"),
        (lambda s, b: s - np.log(b), "limit"),
        (lambda s, b: b * s, "multiple"),
    ],
    "ties": [(37, "float64"), (16, "e^−16"), (18, "rounds earlier"), (88, "largest")],
    "collisions": [(0.33, "without collisions"), (0.33 / 0.67, "odds"), (0.33 * 0.67, "shrink")],
    "popular_proposal": [
        (0.02 / (1.28 * 0.98 + 0.02), "leaves collisions out"),
        (0.02 / (0.005 + 0.02), "256 negatives"),
        (0.02 / (A256 * 0.98 + 0.02), "uniform"),
        (0.02 / 1.28, "odds"),
        (0.02, "offset"),
    ],
    "logq": [
        (lambda q, k: -np.log(k * q), "sign"),
        (lambda q, k: np.log(q), "how many draws"),
        (lambda q, k: np.log10(k * q), "log10"),
        (lambda q, k: k * q, "log scale"),
        (lambda q, k: np.log(k), "where is its q"),
    ],
    "forecast": [
        (1, "ΣP"),
        (890.78999 / 3416, "mean"),
        (11.444568, "k = 256"),
        (3415, "use all"),
    ],
    "memory_full": [(51.2e9, "bytes"), (47.6837, "GiB"), (12.8, "one byte"), (102.4, "gradients")],
    "memory_sampled": [
        (13.1072, "one more"),
        (13_158_400, "in bytes"),
        (0.0131584, "GB"),
        (3.2896, "one byte"),
    ],
    "pairs_ece": [
        ("ABCD", "C again"),
        ("A, B", "D again"),
        (["B", "D"], "A again"),
        ("C", "A again"),
    ],
    "recalibration": [("ABC", "A again"), ("b and c and d", "D again"), ({"C"}, "B again")],
}
CASES = [(name, *case) for name, cases in WRONG.items() for case in cases]


def _generic(check) -> set[str]:
    """What the check says of numbers and functions that nobody would give."""
    odd = [1e30, -1e30, "?", lambda *row: 1e30, lambda *row: -1e30]
    return {check(answer).message for answer in odd}


@pytest.mark.parametrize(
    "name, answer, mentions", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_typical_mistake_gets_its_own_hint(name, answer, mentions):
    check = CHECKS[f"check_{name}"]
    verdict = check(answer)
    assert not verdict and verdict.message.startswith("Not yet. ")
    assert mentions in verdict.message
    assert verdict.message not in _generic(check)


def test_every_check_has_typical_mistakes_and_its_formula_or_claim_in_the_docstring():
    assert {f"check_{name}" for name in WRONG} == set(CHECKS)
    for check in CHECKS.values():
        assert len(inspect.getdoc(check)) > 40


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


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_nothing_that_is_given_raises(check):
    for answer in GARBAGE:
        verdict = check(answer)
        assert verdict.right is False and not verdict
        assert repr(verdict) == verdict._repr_markdown_() == verdict.message
        assert verdict.message.startswith(("Not yet. ", "Not answered yet. "))
        assert "\n" not in verdict.message
    assert check(...) == check(None) and check(None).message.startswith("Not answered yet. ")


def test_an_answer_may_be_any_kind_of_number_or_callable():
    assert exercises.check_memory_full(np.float32(51.2))
    assert exercises.check_k_needed(35.0) and exercises.check_k_needed(np.int64(35))
    assert exercises.check_offset(np.array(8.136))
    assert exercises.check_theorem(theory.converged_probability)
    assert exercises.check_logq(lambda q, k: math.log(q) + math.log(k))
    assert exercises.check_pairs_ece("d, b and A") and exercises.check_pairs_ece({"A", "B", "D"})


def test_a_function_that_writes_into_its_arguments_spoils_no_later_check():
    def spoil(positive, negatives, beta):
        negatives[:] = math.nan
        return 0.0

    exercises.check_gbce(spoil)
    right = _verdicts(SOLUTIONS[0])["check_gbce"]
    assert right, right
