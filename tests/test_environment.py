"""Claims about the packaging: one source of dependencies, held together with all that repeats it."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import gsas_lab
from gsas_lab import threads

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(
        r"^([\w.-]+)==([\w.+!]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


def _make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )


def _ready(folder: Path, tool: str, script: str) -> None:
    """A Makefile whose environment is there and has one tool, a line of shell."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    path = folder / ".venv" / "bin" / tool
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    (folder / ".venv" / "ready").touch()


def test_every_line_of_the_constraints_is_one_exact_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert len(lines) == len(PINS) > 100
    assert not any(pin.local for pin in PINS.values())  # "+cpu" would exclude other builds


@pytest.mark.parametrize("wanted", DECLARED, ids=lambda wanted: wanted.name)
def test_every_dependency_is_pinned_within_its_range(wanted):
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


def test_what_dependencies_bring_with_them_is_pinned_too():
    """All but the accelerator libraries, which torch itself pins."""
    seen: set[str] = set()
    waiting = list(DECLARED)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        assert name in PINS
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    assert len(seen) > 100


def test_installed_versions_are_the_pinned_ones():
    """As `make` leaves them; elsewhere (a GPU machine's own torch) there is nothing to compare."""
    if not (ROOT / ".venv" / "ready").exists():
        pytest.skip("this environment was not made by make")
    for name, pin in PINS.items():
        try:
            assert Version(distribution(name).version).public == pin.public, name
        except PackageNotFoundError:
            pass  # for another platform, or another Python


def test_whoever_cites_it_cites_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == gsas_lab.__version__
    assert cited["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert cited["preferred-citation"]["doi"] == "10.1145/3604915.3608783"


def test_environment_yml_is_thin_and_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}" == "python>=3.11"
    assert (pip, packages) == ("pip", {"pip": ["-e .[notebooks,dev]"]})
    assert {"notebooks", "dev"} <= set(EXTRAS)


def test_the_makefile_asks_for_the_same_python_and_extras():
    text = (ROOT / "Makefile").read_text()
    assert "(3, 11)" in text and "Python 3.11 or newer" in text
    assert '-e ".[notebooks,dev]" -c constraints.txt' in text


def test_the_library_needs_only_its_core_dependencies():
    modules = [Requirement(line).name.replace("-", "_") for e in EXTRAS.values() for line in e]
    library = [path.stem for path in (ROOT / "gsas_lab").glob("*.py")]
    light = [m for m in library if m not in ("figures", "__main__")] + [
        "lessons.exercises.your_data"
    ]
    _python_without(modules, "; ".join(f"import gsas_lab.{module}" for module in light))


@pytest.mark.parametrize(
    "module", ["theory", "lessons.theory_explorers", "lessons.exercises.your_data"]
)
def test_the_theory_and_its_lessons_need_no_torch(module):
    _python_without(["torch"], f"import gsas_lab.{module}; assert not sys.modules['torch']")


def _python_without(modules: list[str], code: str) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
    done = subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the names that users see ---------------------------------------------------------------------


def test_the_stub_and_the_lazy_imports_offer_the_same_names_from_the_same_modules():
    tree = ast.parse((ROOT / "gsas_lab" / "__init__.pyi").read_text())
    offered = {
        name.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.name == name.asname
    }
    assert offered == {name: f"gsas_lab.{home}" for name, home in gsas_lab._HOME.items()}
    for name, home in offered.items():
        assert getattr(gsas_lab, name) is getattr(import_module(home), name)


def test_completion_shows_the_names_of_the_library_and_nothing_of_its_machinery():
    code = "import gsas_lab; print([n for n in dir(gsas_lab) if not n.startswith('_')])"
    shown = set(ast.literal_eval(_python(code).stdout))
    assert shown == {*gsas_lab.__all__, "threads"}


def test_every_folder_and_file_of_the_library_is_part_of_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "gsas_lab").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts): folder for folder in folders}
    assert {*data["packages"]} == {*names} > {"gsas_lab"}
    given = [
        (names[name], each) for name, all_of in data["package-data"].items() for each in all_of
    ]
    packed = {path for folder, each in given for path in folder.glob(each) if path.is_file()}
    every = {path for path in (ROOT / "gsas_lab").rglob("*") if path.is_file()}
    assert packed == {path for path in every if path.suffix not in (".py", ".pyc")}
    assert {"py.typed", "__init__.pyi"} <= {path.name for path in packed}


def test_a_users_type_checker_sees_the_names(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gsas_lab\nreveal_type(gsas_lab.InputError)\ngsas_lab.nothing_of_ours\n"
    )
    words = ["--follow-imports=silent", "--ignore-missing-imports", "--no-site-packages"]
    words += ["--cache-dir", str(tmp_path / "cache"), "mine.py"]
    said = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert re.search(r'type is "def .* -> gsas_lab.errors.InputError"', said), said
    assert 'has no attribute "nothing_of_ours"' in said


# --- a machine in use, a terminal of another kind -------------------------------------------------


def _python(code: str, **setting: str | None) -> subprocess.CompletedProcess:
    """A fresh interpreter, without the settings of OpenMP that this one has, and with `setting`."""
    own = {n: v for n, v in os.environ.items() if n not in threads.CHOSEN_BY}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=own | {"PYTHONPATH": str(ROOT)} | setting, capture_output=True, text=True, check=False,
    )  # fmt: skip


SHOWN = "import os; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"


def test_threads_wait_passively_before_torch_is_loaded_and_in_what_is_started():
    done = _python(
        "import sys, gsas_lab; assert 'torch' not in sys.modules\n"
        f"import subprocess; subprocess.run([sys.executable, '-c', {SHOWN!r}])"
    )
    assert done.stdout == f"PASSIVE {threads.SPINS}\n" and not done.stderr


@pytest.mark.parametrize("name", threads.CHOSEN_BY)
def test_the_users_own_way_of_waiting_stays(name):
    policy, spins = _python("import gsas_lab; " + SHOWN, **{name: "1"}).stdout.split()
    assert policy == ("1" if name == "OMP_WAIT_POLICY" else "None")
    assert spins == ("1" if name == "GOMP_SPINCOUNT" else "None")


def test_torch_imported_first_is_told_once_in_the_log():
    code = "import sys, types, logging; logging.basicConfig(level='INFO')\n"
    code += "sys.modules['torch'] = types.ModuleType('torch')\nimport gsas_lab, gsas_lab.theory"
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torch was imported before gsas_lab") == 1


def test_every_way_into_the_library_sets_the_waiting_first():
    """Kernels, workers, Slurm jobs and the command line all import the package before torch."""
    for path in [*ROOT.glob("notebooks/**/*.ipynb"), ROOT / "benchmarks" / "bench.py"]:
        text = path.read_text()
        torch, ours = (
            re.search(rf"(import|from) {name}\b", text) for name in ("torch", "gsas_lab")
        )
        assert not torch or ours.start() < torch.start(), path


def test_stopped_while_importing_the_command_says_one_sentence(tmp_path):
    """The interrupt comes out of the middle of an import, where others swallow it or wrap it."""
    (tmp_path / "pandas.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    sum(range(10**6))\n"
        "except KeyboardInterrupt as error:\n    raise ImportError('pandas is broken') from error\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gsas_lab", "describe", "known-truth"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr == "gsas-lab: stopped before anything was begun.\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_without_our_letters_shows_them_as_codes(encoding):
    code = "from gsas_lab import __main__ as m, diagnosis\n"
    code += "diagnosis.diagnose_table = lambda *a, **b: 'Σp \\udcff'\n"
    code += "raise SystemExit(m.main(['diagnose', 'Σ.csv']))"
    done = _python(code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("Σp \\udcff\n" if encoding == "utf-8" else "\\u03a3p \\udcff\n")


@pytest.mark.parametrize(("words", "unbuffered"), [("runs", "1"), ("train --help", "")])
def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word(words, unbuffered, tmp_path):
    read, write = os.pipe()
    os.close(read)  # as `head` does, before anything is written
    done = subprocess.run(
        [sys.executable, "-m", "gsas_lab", *words.split()], stdout=write, stderr=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"GSAS_LAB_RUNS": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_a_full_disk_under_the_output_is_one_sentence(tmp_path):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gsas_lab", "runs"], stdout=full, stderr=subprocess.PIPE,
            cwd=ROOT, env=os.environ | {"GSAS_LAB_RUNS": str(tmp_path)}, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"gsas-lab: .*No space left on device.*\n", done.stderr)


@pytest.mark.parametrize(
    "path", [*ROOT.glob("gsas_lab/*.py"), *ROOT.glob("benchmarks/*.py")], ids=lambda path: path.name
)
def test_text_is_read_and_written_in_a_named_encoding(path):
    """Else it is the machine's, and a file written here cannot be read there."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = len(call.args) + any(word.arg == "encoding" for word in call.keywords)
        if name in ("read_text", "write_text"):
            assert given > (name == "write_text"), f"line {call.lineno}"
        elif ast.unparse(call.func) in ("open", "os.fdopen"):
            modes = [ast.unparse(part) for part in [*call.args, *call.keywords]]
            binary = any(re.search(r"'[rwxa]b", mode) for mode in modes)
            assert binary or any("encoding=" in mode for mode in modes), f"line {call.lineno}"


def test_an_installed_package_brings_its_notebooks_and_keeps_results_out_of_itself(tmp_path):
    """Built from a copy, so that nothing is left in the checkout; started outside of any."""
    copy, site, home = (tmp_path / name for name in ("copy", "site", "home"))
    skip = shutil.ignore_patterns(".*", "build", "runs", "cache", "*.egg-info", "__pycache__")
    for name in ("gsas_lab", "notebooks", "docs", "data", "outputs/reference"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    home.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", site, copy],
        check=True,
        cwd=tmp_path,
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("GSAS_LAB_")}
    own |= {"PYTHONPATH": str(site), "HOME": str(home)}

    def python(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words], cwd=home, env=own, capture_output=True, text=True, check=True
        ).stdout

    found = python(
        "-c",
        "from gsas_lab import __main__, files, interactions as i, results, runs\n"
        "import json; print(json.dumps([str(files.ROOT), str(files.HOME), str(files.runs_folder()),"
        "sorted(p.name for p in __main__.NOTEBOOKS.glob('[0-9]*')), sorted(i._registry()),"
        "results.load(results.REFERENCE / 'ml-1m' / 'figure3').source, runs._commit()]))",
    )
    root, place, run, notebooks, registry, _, commit = json.loads(found)
    assert (root, place) == (f"{site}/gsas_lab/project", f"{home}/gsas-lab")
    assert run == f"{home}/gsas-lab/outputs/runs" and commit == f"version {gsas_lab.__version__}"
    assert notebooks == sorted(p.name for p in (ROOT / "notebooks").glob("[0-9]*"))
    assert {"ml-1m", "beauty"} <= set(registry)
    assert "known-truth-small" in python("-m", "gsas_lab", "describe", "known-truth-small")
    assert not (home / "gsas-lab" / "data").exists()


def test_a_second_make_run_installs_nothing(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    assert "pip install" in _make("--dry-run", "run", folder=tmp_path).stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ready").touch()
    again = _make("--dry-run", "run", "DATASET=ml-1m", folder=tmp_path).stdout
    assert again.strip() == '.venv/bin/python -m gsas_lab notebooks --dataset="$GSAS_LAB_DATASET"'
    os.utime(tmp_path / "constraints.txt", (2**33, 2**33))
    assert "pip install" in _make("--dry-run", "run", folder=tmp_path).stdout


@pytest.mark.parametrize(
    "dataset", ["a b.csv", "größe.csv", "~/x.csv", 'a"b.csv', "it's $HOME.csv", "`x`;y"]
)
def test_the_data_set_reaches_the_command_as_it_was_typed(tmp_path, dataset):
    _ready(tmp_path, "python", 'printf "%s\\n" "$@"')
    done = _make("run", f"DATASET={dataset}", "WITH=min_user=3 seed=2", folder=tmp_path)
    assert done.stdout.splitlines() == [
        "-m", "gsas_lab", "notebooks", f"--dataset={dataset}", "-p", "min_user=3", "-p", "seed=2",
    ]  # fmt: skip


def test_slides_are_of_pages_as_new_as_the_notebooks_and_the_library(tmp_path):
    _ready(tmp_path, "python", 'echo "$3"; [ "$3" != site ] || touch outputs/site/index.html')
    sources = ["notebooks/01_a.ipynb", "gsas_lab/lessons/slides.py", "outputs/reference/x/y/z.csv"]
    page = tmp_path / "outputs" / "site" / "index.html"
    for path in (page, *(tmp_path / name for name in sources)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    page.unlink()

    def made():
        return _make("slides", folder=tmp_path).stdout.split()

    assert made() == ["site", "slides"]
    assert made() == ["slides"]
    for name in sources:
        os.utime(page, (10**9, 10**9))
        for other in (*sources, ".venv/ready", "pyproject.toml", "constraints.txt"):
            os.utime(tmp_path / other, (10**9 - 1, 10**9 - 1))
        assert made() == ["slides"]
        os.utime(tmp_path / name, (10**9 + 1, 10**9 + 1))
        assert made() == ["site", "slides"], name


@pytest.mark.parametrize(
    ("given", "found"),
    [("my runs", "{here}/my runs"), ("/elsewhere", "/elsewhere"), ("~/runs", "~/runs"), ("", "")],
)
def test_the_lab_keeps_its_runs_where_make_was_called(tmp_path, monkeypatch, given, found):
    """Its kernels start in the notebooks' folder."""
    _ready(tmp_path, "jupyter", 'echo "$GSAS_LAB_RUNS" "$GSAS_LAB_CACHE" "$1"')
    monkeypatch.setenv("GSAS_LAB_RUNS", given)
    monkeypatch.setenv("GSAS_LAB_CACHE", "../$HOME")
    done = _make("lab", folder=tmp_path)
    assert done.stdout.strip() == f"{found.format(here=tmp_path)} {tmp_path}/../$HOME lab".strip()


def test_an_old_python_gets_one_sentence_and_no_environment(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "python3.10"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10); $2"'
    )
    old.chmod(0o755)
    done = _make("run", f"PYTHON={old}", folder=tmp_path)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert done.stderr.splitlines()[0] == (
        "gsas-lab needs Python 3.11 or newer: name one, as in 'make run PYTHON=python3.12'."
    )


def test_ci_checks_and_tests_and_lets_nothing_be_skipped():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text().splitlines()
    assert lines[-2:] == ["make check", "make test"]
    assert any(line.startswith("export GSAS_LAB_CI=1") for line in lines)


def test_in_ci_a_skip_for_want_of_a_tool_fails(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n"
        "def test_tool():\n    pytest.skip('no Chromium')\n\n"
        "def test_hardware():\n    pytest.skip('no CUDA')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        env=os.environ | {"GSAS_LAB_CI": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 skipped" in done.stdout
    assert "no Chromium" in done.stdout
