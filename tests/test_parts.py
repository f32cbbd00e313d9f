"""A loss, a sampler or an encoder of one's own goes everywhere, or is refused in one sentence."""

import ast
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gsas_lab import diagnosis, parts, runs, sweeps, training
from gsas_lab.__main__ import main
from gsas_lab.encoders import SASRec
from gsas_lab.errors import InputError
from gsas_lab.experiment import assemble
from gsas_lab.losses import GBCE, LOSSES, CorrectedLogQ, LogQ, Loss
from gsas_lab.models import MODELS
from gsas_lab.samplers import SAMPLERS, PositiveExcluded
from gsas_lab.settings import Settings

ROOT = Path(__file__).parent.parent
MINE = ROOT / "tests" / "my_parts.py"


@pytest.fixture
def mine(small_world):
    parts.load(MINE)
    return replace(small_world, k=4, epochs=1)


PARTS = {"focal": {"loss": "focal"}, "hard": {"sampler": "hard"}, "gru": {"model": "gru"}}


@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_a_part_of_ones_own_trains_ranks_recommends_and_loads(mine, change):
    run = runs.train(replace(mine, **change))
    assert 0 <= run.metrics["ndcg@10"] <= 1
    again = runs.load(run.folder)
    assert again.settings == run.settings
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert len(again.recommend([again.items.item_ids[3]], n=3)) == 3


class Captured(Exception):
    pass


@pytest.fixture
def capturing(monkeypatch):
    """A double of CUDA and Triton: everything happens on CPU but the capture itself."""

    def capture(step, batch):
        raise Captured

    monkeypatch.setattr(training, "triton_kernels", SimpleNamespace(available=lambda _: True))
    monkeypatch.setattr(training.Step, "WARM", 0)
    monkeypatch.setattr(training.Step, "_capture", capture)


@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_a_part_of_ones_own_is_not_captured_unless_it_says_so(mine, change, capturing, monkeypatch):
    with pytest.raises(Captured):
        runs.train(mine)
    own = replace(mine, **change)
    assert runs.train(own).history["loss"].notna().all()
    ((kind, name),) = change.items()
    (registry,) = (each for each in parts.Registry.every if each.kind == kind)
    monkeypatch.setattr(registry[name], "capturable", True)
    with pytest.raises(Captured):
        runs.train(replace(own, seed=2))


def test_the_usual_logq_is_captured_and_the_corrected_one_is_not(small_world, capturing):
    """Its weights are computed by stock operators on every device, and these ask the host."""
    asked = replace(small_world, k=4, epochs=1, logq=True)
    with pytest.raises(Captured):
        runs.train(asked)
    assert runs.train(replace(asked, logq="corrected")).history["loss"].notna().all()


def test_parts_of_the_library_may_be_captured_and_their_children_may_not():
    for registry in parts.Registry.every:
        assert all(part.capturable for part in registry.values())

    @parts.register("my-gbce")
    class Mine(GBCE):
        pass

    @parts.register("my-fast-gbce")
    class Fast(GBCE):
        capturable = True

    assert not Mine.capturable and Fast.capturable and GBCE.capturable
    for loss in (Mine(0.5), Fast(0.5)):
        assert LogQ(loss, 0.1, 50).capturable == loss.capturable
        assert not CorrectedLogQ(loss, 0.1, 50, False).capturable


def test_a_fixed_point_is_found_from_the_formula_alone(mine):
    """Focal BCE has no theorem here; where its expected loss is least, a search finds as well."""
    loss, sampler = LOSSES["focal"](), PositiveExcluded(4, 50)
    point = loss.fixed_point(sampler)
    prior = np.array([1e-3, 0.02, 0.2, 0.6])
    scores = torch.linspace(-14, 14, 280_001, dtype=torch.float64)
    positive = torch.sigmoid(-scores) ** 2 * F.softplus(-scores)
    negative = torch.sigmoid(scores) ** 2 * F.softplus(scores)
    for p, found in zip(prior, point.logit(prior), strict=True):
        expected = p * positive + (1 - p) * sampler.alpha * negative
        assert abs(float(scores[expected.argmin()]) - found) < 2e-3
    np.testing.assert_allclose(point.prior(point.logit(prior)), prior, rtol=1e-9)


def test_the_numerical_fixed_point_of_gbce_is_that_of_theorem_5_1():
    class Copy(Loss):
        def formula(self, positive_scores, negative_scores):
            return GBCE(0.3).formula(positive_scores, negative_scores)

    prior, sampler = np.array([1e-4, 0.01, 0.5]), PositiveExcluded(3, 100)
    theorem = GBCE(0.3).fixed_point(sampler)
    np.testing.assert_allclose(
        Copy().fixed_point(sampler).logit(prior), theorem.logit(prior), atol=1e-6
    )


def test_where_scores_decide_the_negatives_no_rate_is_claimed(mine):
    made = assemble(replace(mine, sampler="hard"))
    assert made.loss.fixed_point(made.sampler) is None
    assert assemble(replace(mine, sampler="hard", theory_start=True)).model().bias is None
    with pytest.raises(InputError, match="tells no rates"):
        assemble(replace(mine, sampler="hard", logq=True))


def test_a_changed_part_is_another_run(mine, tmp_path):
    path = tmp_path / "mine.py"
    text = MINE.read_text(encoding="utf-8").replace('register("', 'register("my-')
    path.write_text(text, encoding="utf-8")
    parts.load(path)
    settings = replace(mine, loss="my-focal")
    run = runs.train(settings)
    assert runs.train(settings).folder == run.folder
    path.write_text(text.replace("** 2", "** 3"), encoding="utf-8")
    parts.load(path)
    assert runs.identity(settings, run.data) != run.folder.name
    with pytest.raises(InputError, match="another loss of that name"):
        runs.load(run.folder)
    LOSSES.pop("my-focal")
    LOSSES.own.pop("my-focal")
    with pytest.raises(InputError, match=r"loss = 'my-focal': choose one of .*--parts"):
        monkey = pytest.MonkeyPatch()
        monkey.delenv(parts.VARIABLE)
        try:
            runs.load(run.folder)
        finally:
            monkey.undo()


def test_the_librarys_runs_keep_their_names(small_world, mine):
    data = assemble(small_world).data
    name = runs.identity(small_world, data)
    parts.load(MINE)
    assert runs.identity(small_world, data) == name and not small_world.own_parts


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A file that other processes can read, with folders of its own."""
    monkeypatch.setenv("GSAS_LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GSAS_LAB_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(1)
    rows = [f"{user},{item}" for user in range(80) for item in draw.integers(1, 21, size=8)]
    path = tmp_path / "tiny.csv"
    path.write_text("\n".join(["user,item", *rows]), encoding="utf-8")
    return str(path)


@pytest.fixture
def asked(tiny):
    own = Settings(dataset=tiny, validation_users=20, k=4, epochs=1, d=8, max_length=6)
    parts.load(MINE)
    return {name: replace(own, **change) for name, change in PARTS.items()}


def test_the_parts_of_notebook_09_go_through_a_sweep_of_two_workers_and_diagnose(
    asked, tmp_path, monkeypatch
):
    book = json.loads((ROOT / "notebooks" / "09_your_own_parts.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    lines = "\n".join(cells).splitlines()
    head = [line for line in lines if line.startswith(("from ", "import "))]
    own = [cell.split("\n\n\n")[0] for cell in cells if cell.startswith("@register")]
    assert len(own) == len(PARTS)
    path = tmp_path / "of_notebook_09.py"
    path.write_text("\n".join([*head, *own]), encoding="utf-8")
    for registry in parts.Registry.every:  # my_parts.py has parts of the same names
        registry.own.clear()
        for name in set(PARTS) & set(registry):
            del registry[name]
    monkeypatch.setenv(parts.VARIABLE, "")
    parts.load(path)
    table = sweeps.run(asked, tmp_path / "sweep", at_once=2)
    assert set(table["state"]) == {"done"}, table["error"].tolist()
    assert set(table["name"]) == set(PARTS)
    for settings in asked.values():
        run = runs.train(settings)  # found, not trained again
        told = diagnosis.diagnose_run(run)
        assert told.verdict and 0 < told.expected < 20
        assert ("analytic" in told.repairs.index) == (run.theorem is not None)


def test_nodes_of_a_cluster_know_the_parts_where_it_hands_no_environment_on(
    asked, tmp_path, monkeypatch
):
    """A double of Slurm with --export=NONE: each job in a process of its own, by submitit's words."""
    submitit = pytest.importorskip("submitit")
    code = "import pickle, sys; f, given = pickle.load(sys.stdin.buffer); "
    code += "sys.stdout.buffer.write(pickle.dumps(f(*given)))"
    bare = {name: value for name, value in os.environ.items() if name != parts.VARIABLE}

    class Job:
        paths = SimpleNamespace(stderr="nowhere")

        def __init__(self, *work):
            self.run = subprocess.run(
                [sys.executable, "-c", code], input=pickle.dumps((work[0], work[1:])),
                capture_output=True, env=bare, check=True,
            )  # fmt: skip

        def done(self):
            return True

        def result(self):
            return pickle.loads(self.run.stdout)

    class Slurm:
        def __init__(self, folder, cluster):
            assert cluster == "slurm"

        def update_parameters(self, **_): ...

        def map_array(self, function, *given):
            return [Job(function, *each) for each in zip(*given, strict=True)]

    monkeypatch.setattr(submitit, "AutoExecutor", Slurm)
    table = sweeps.run(asked, tmp_path / "sweep", cluster={"partition": "gpu"})
    assert set(table["state"]) == {"done"}, table["error"].tolist()


def test_the_command_line_takes_parts(tiny):
    words = [sys.executable, "-m", "gsas_lab", "--parts", str(MINE), "train", "--profile", "small"]
    words += ["--dataset", tiny, "--validation-users", "20", "--loss", "focal", "--epochs", "1"]
    words += ["--k", "2", "--max-length", "5", "--d", "8"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "ndcg@10" in done.stdout, done.stderr


BAD = {
    "raise ValueError('no')": "failed .ValueError: no",
    "import nowhere_at_all": "failed .ModuleNotFoundError",
    "def (": "failed .SyntaxError",
    "@register('x')\nclass X: pass": "is none of sampler|none of",
    "@register('x')\nclass X(Loss): pass": "has no formula",
    "@register('x')\nclass X(Sampler):\n    alpha = None": "has no draw",
    "@register('x')\nclass X(Encoder): pass": "has no forward",
    "@register('gbce')\nclass X(Loss):\n    def formula(self, p, n): return p.mean()": "exists already",
    "@register('x')\nclass X(Loss):\n    def formula(self, p, n): return p": "one finite number",
    "@register('x')\nclass X(Loss):\n    def formula(self, p, n): return p.mean() * float('nan')":
        "one finite number",
    "@register('x')\nclass X(Loss):\n    def formula(self, p, n): return (n @ p).mean()":
        "fails on a small example .RuntimeError",
    "@register('x')\nclass X(Loss):\n    def formula(self, p, n): return p.detach().mean()":
        "fails on a small example|without gradients",
    "@register('x')\nclass X(GBCE):\n    def formula(self, p, n): return p.square().mean() + n.mean()":
        "differs from its formula's",
    "@register('x')\nclass X(Sampler):\n    alpha = None\n"
    "    def draw(self, asked, generator=None): return asked.positives, None": "negatives where",
    "@register('x')\nclass X(PositiveExcluded):\n"
    "    def draw(self, asked, generator=None):\n"
    "        return torch.full((len(asked.positives), self.k), self.n_items + 1), None": "items from 1 to",
    "@register('x')\nclass X(PositiveExcluded):\n"
    "    def draw(self, asked, generator=None):\n"
    "        return asked.positives[:, None].repeat(1, self.k), None": "collisions = False",
    "@register('x')\nclass X(PositiveExcluded):\n"
    "    collisions = True\n"
    "    def draw(self, asked, generator=None):\n"
    "        return torch.ones(len(asked.positives), self.k, dtype=torch.int64), None":
        "where its alpha says",
    "@register('x')\nclass X(PositiveExcluded):\n    alpha = float('nan')": "tells a rate alpha of nan",
    "@register('x')\nclass X(PositiveExcluded):\n    alpha = float('inf')": "tells a rate alpha of inf",
    "@register('x')\nclass X(Sampler):\n    alpha = -1.0\n    shows_rates = False\n"
    "    def draw(self, asked, generator=None):\n"
    "        return torch.ones(len(asked.positives), self.k, dtype=torch.int64), None":
        "tells a rate alpha of -1",
    "@register('x')\nclass X(Sampler):\n    alpha = None\n"
    "    def draw(self, asked, generator=None):\n"
    "        one = torch.ones(1, self.k, dtype=torch.int64)\n"
    "        return one, asked.positives * 0 - 1": "int64 rows from 0 to 0",
    "@register\nclass X(Loss):\n    def formula(self, p, n): return p.mean()": "register takes a name",
    "@register('../x')\nclass X(Loss):\n    def formula(self, p, n): return p.mean()":
        "a name of letters",
    "@register('')\nclass X(Loss):\n    def formula(self, p, n): return p.mean()": "a name of letters",
    "@register(7)\nclass X(Loss):\n    def formula(self, p, n): return p.mean()": "register takes a name",
    "@register('whole')\nclass X(Loss):\n    def formula(self, p, n): return p.mean()\nraise OSError":
        "failed .OSError",
    "@register('x')\nclass X(Encoder):\n    def forward(self, items, p=None, s=None):\n"
    "        return self.item_embedding(items).sum(1)": "as hidden states",
    "@register('x')\nclass X(Encoder):\n    def forward(self, items, p=None, s=None):\n"
    "        return self.item_embedding(items) * 0": "stays the same",
    "@register('x')\nclass X(Encoder):\n    def forward(self, items, p=None, s=None):\n"
    "        x = self.item_embedding(items)\n        return x + x.mean(1, keepdim=True)":
        "to the right",
    "@register('x')\nclass X(Encoder):\n    def forward(self, items, p=None, s=None):\n"
    "        x = self.item_embedding(items)\n        return x + x.mean(0, keepdim=True)":
        "beside another one",
    "@register('x')\nclass X(Encoder):\n    packed = True\n"
    "    def forward(self, items, p=None, s=None):\n"
    "        return self.item_embedding(items).cumsum(1)": "run into the next one",
    "@register('x')\nclass X(Encoder):\n    def __init__(self, n_items, d, max_length, colour): pass\n"
    "    def forward(self, items, p=None, s=None): return items": "asks for colour",
}  # fmt: skip
HEAD = (
    "import torch\nfrom gsas_lab.losses import GBCE, Loss\nfrom gsas_lab.models import Encoder\n"
    "from gsas_lab.parts import register\nfrom gsas_lab.samplers import PositiveExcluded, Sampler\n"
)


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_part_that_cannot_work_is_one_sentence_and_is_not_registered(text, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(HEAD + text, encoding="utf-8")
    before = [dict(each) for each in parts.Registry.every]
    with pytest.raises(InputError, match=BAD[text]) as told:
        parts.load(path)
    assert "bad.py" in str(told.value) and "\n" not in str(told.value)
    assert [dict(each) for each in parts.Registry.every] == before
    assert main(["--parts", str(path), "runs"]) == 2


def test_a_file_that_is_not_there_and_a_name_that_nobody_has(capsys):
    assert main(["--parts", "/nowhere/mine.py", "runs"]) == 2
    assert "does not exist" in capsys.readouterr().err
    for path in ("~nobody-of-that-name/a.py", "a\0b.py", "", "/"):
        with pytest.raises(InputError):
            parts.load(path)
    for name, kind in (("loss", "loss"), ("sampler", "sampler"), ("model", "model")):
        with pytest.raises(InputError, match=f"{kind} = 'magic': choose one of"):
            Settings(**{name: "magic"})


def test_two_files_with_one_name_are_told_and_a_file_again_or_moved_is_not(tmp_path, mine):
    text = MINE.read_text(encoding="utf-8")
    (tmp_path / "moved.py").write_text(text, encoding="utf-8")
    (tmp_path / "other.py").write_text(text + "\n# changed", encoding="utf-8")
    first = LOSSES["focal"]
    with pytest.raises(InputError, match=r"other.py: A loss called 'focal' is in .*my_parts.py"):
        parts.load(tmp_path / "other.py")
    assert LOSSES["focal"] is first
    parts.load(MINE)
    parts.load(tmp_path / "moved.py")
    assert LOSSES["focal"] is not first


def test_a_path_that_workers_cannot_be_told_is_refused_and_others_need_no_ascii(tmp_path):
    text = MINE.read_text(encoding="utf-8")
    for name in ("a:b.py", "mine.txt", "mine"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="ends in .py, and no ':' is in its path"):
            parts.load(tmp_path / name)
    path = tmp_path / "Größe 損失.py"
    path.write_text(text, encoding="utf-8")
    parts.load(path)
    assert os.environ[parts.VARIABLE] == str(path)


@pytest.mark.parametrize(
    "formula",
    ["F.softplus(-p).mean()", "F.softplus(n).mean()", "(n.topk(2).values.sum(-1) - p).mean()"],
)
def test_a_loss_without_a_fixed_point_has_none_and_raises_nothing(formula):
    made = eval(f"type('X', (Loss,), {{'formula': lambda self, p, n: {formula}}})", globals())
    made.check()
    assert made().fixed_point(PositiveExcluded(4, 50)) is None


def test_a_part_that_fails_at_other_sizes_than_its_check_is_one_sentence(small_world, tmp_path):
    path = tmp_path / "sizes.py"
    text = "@register('two')\nclass Two(Loss):\n    def formula(self, p, n):\n"
    text += "        return (n.topk(2).values.sum(-1) - p).mean()\n"
    text += "@register('heads')\nclass Heads(Encoder):\n    def __init__(self, n_items, d, max_length):\n"
    text += "        super().__init__(n_items, d, max_length)\n"
    text += "        self.layer = torch.nn.MultiheadAttention(d, 8)\n"
    text += "    def forward(self, items, p=None, s=None): return self.item_embedding(items)\n"
    path.write_text(HEAD + text, encoding="utf-8")
    parts.load(path)
    with pytest.raises(InputError, match=r"The loss Two fails with 1 negatives \(RuntimeError"):
        runs.train(replace(small_world, loss="two", k=1))
    with pytest.raises(InputError, match=r"The model Heads cannot be made \(AssertionError"):
        runs.train(replace(small_world, model="heads", d=9))


def test_a_part_that_is_registered_again_takes_the_place_of_the_first(mine):
    first = MODELS["gru"]
    parts.load(MINE)
    assert MODELS["gru"] is not first


@pytest.mark.parametrize("registry", [LOSSES, SAMPLERS, MODELS], ids=lambda each: each.kind)
def test_the_librarys_own_parts_pass_their_check(registry):
    for part in list(registry.values()):
        part.check()


def test_a_checkless_leak_is_seen_in_sasrec_too(monkeypatch):
    """The check can fail: SASRec that does not look at segments."""

    class Leaking(SASRec):
        def forward(self, items, positions=None, segments=None):
            return super().forward(items, positions, None)

    with pytest.raises(InputError, match="run into the next one"):
        Leaking.check()


def test_names_of_losses_stand_in_no_other_file_than_theirs_and_the_recipes():
    """A part is asked, never told apart by its name: neither as text nor as a class."""
    library = Path(parts.__file__).parent
    classes = {kind.__name__ for kind in LOSSES.values()}
    texts = (ast.Constant, "value", {*LOSSES}), (ast.Name, "id", classes)
    kinds = *texts, (ast.Attribute, "attr", classes), (ast.alias, "name", classes)
    found = {}
    for path in library.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for kind, field, names in kinds:
                if isinstance(node, kind) and getattr(node, field) in names:
                    found.setdefault(path.name, set()).add(getattr(node, field))
    assert found.pop("settings.py") == {"bce"}  # the default: the paper's SASRec
    assert found.pop("losses.py") == {*LOSSES} | classes
    assert found.pop("figures.py") == {"softmax"}  # of a curve in a legend
    assert {*found} <= {"recipes.py", "paper.py", "documents.py"}, found


def test_a_device_that_cannot_draw_in_float64_is_not_taken(monkeypatch):
    """A double of Apple's MPS: found, and without float64."""
    rand = torch.rand

    def on_mps(*size, dtype=None, device="cpu", **more):
        if str(device) == "mps" and dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return rand(*size, dtype=dtype, device="cpu", **more)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "rand", on_mps)
    assert runs.choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="'mps' has no float64"):
        runs.choose_device("mps")
    monkeypatch.setattr(runs, "_able", lambda device: True)
    assert runs.choose_device("auto").type == "mps"


def test_a_dropout_that_would_be_rounded_to_0_is_refused():
    with pytest.raises(InputError, match="rounded to 0"):
        Settings(dropout=1 / 600)
    assert Settings(dropout=1 / 500).dropout and Settings(dropout=0).dropout == 0


@pytest.mark.parametrize(
    "change",
    [
        {"block": "paper"},
        {"block": "modern", "tied": True, "theory_start": True},
        {"model": "bert4rec", "loss": "softmax", "block": "bert"},
        {"model": "gru"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
@pytest.mark.filterwarnings("ignore")
def test_an_exported_encoder_scores_as_the_run_in_a_process_without_the_library(
    mine, tmp_path, change
):
    run = runs.train(replace(mine, **change))
    path = run.export(tmp_path / "serving.pt2")
    items = torch.randint(1, run.model.n_items + 1, (5, run.model.max_length))
    items[1, 2:] = 0
    torch.save(items, tmp_path / "items.pt")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module();"
        "h, table = program(torch.load(sys.argv[2])); torch.save(h @ table.T, sys.argv[3]);"
        "assert not any(name.startswith('gsas_lab') for name in sys.modules)"
    )
    words = [path, tmp_path / "items.pt", tmp_path / "scores.pt"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    bias = 0.0 if run.model.bias is None else run.model.bias.detach()
    found = torch.load(tmp_path / "scores.pt").detach() + bias
    with torch.no_grad():
        wanted = run.model.score(items)
    assert torch.allclose(found[:, 1:], wanted[:, 1:], rtol=1e-4, atol=1e-5)


def test_what_reads_no_histories_is_not_exported(mine, tmp_path):
    for model in ("popularity", "mf"):
        run = runs.train(replace(mine, model=model))
        with pytest.raises(InputError, match="reads no histories"):
            run.export(tmp_path / "no.pt2")
    assert not (tmp_path / "no.pt2").exists()
