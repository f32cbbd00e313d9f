"""The command line: `python -m gsas_lab train --help` explains every setting."""

# ruff: noqa: E402

import os
import signal
import sys
from typing import Any, NoReturn


def _stopped_early(*_: Any) -> None:
    os.write(2, b"gsas-lab: stopped before anything was begun.\n")
    os._exit(130)


# The imports take seconds, and some of them swallow a KeyboardInterrupt or wrap it.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stopped_early)

import argparse
import io
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from gsas_lab import (
    diagnosis,
    distributed,
    evidence,
    faults,
    files,
    interactions,
    parts,
    recipes,
    repairs,
    runs,
    shelf,
    threads,
)
from gsas_lab.errors import InputError, counted
from gsas_lab.settings import Settings

NOTEBOOKS = files.ROOT / "notebooks"
DOCS = files.ROOT / "docs"
LONG = ("01_overconfidence", "02_gbce_theory", "03_training", "09_your_own_parts")  # each trains


def main(words: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr that says what to do."""
    try:
        try:
            return _main(words)
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter tries again at its end
        if isinstance(error, BrokenPipeError):  # who reads has seen enough, as `head` does
            return 128 + signal.SIGPIPE
        print(f"gsas-lab: the output could not be written ({error.strerror}).", file=sys.stderr)
        return 2


def _main(words: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no Σ is shown "\\u03a3"
            stream.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGINT) is _stopped_early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.environ.get("GSAS_LAB_RUNS"):  # one folder for kernels and workers, wherever they run
            os.environ["GSAS_LAB_RUNS"] = str(files.runs_folder())
        arguments = _parser().parse_args(_with_parts(words))
        files.settle_folders()
        arguments.command(arguments)
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:
        print(f"gsas-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gsas-lab: stopped; the same command goes on after the last epoch.", file=sys.stderr)
        return 130
    return 0


def _with_parts(words: list[str] | None) -> list[str]:
    """Load the files of --parts and $GSAS_LAB_PARTS, whose names the parser then knows; the rest."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--parts", action="append", default=[])
    found, rest = first.parse_known_args(words)
    for path in found.parts:
        parts.load(path)
    parts.load_given()
    return rest


def _train(arguments: argparse.Namespace) -> None:
    known = {item.name for item in fields(Settings)}
    given = {name: value for name, value in vars(arguments).items() if name in known}
    settings = recipes.settings(arguments.recipe, arguments.profile, given)
    recipes.refuse_unread(settings, given)
    with distributed.group(runs.choose_device(settings.device)):
        run = runs.train(settings)
        if not distributed.first():
            return
    for name, value in run.metrics.items():
        print(f"{name:>20}  {value:.4f}" if isinstance(value, float) else f"{name:>20}  {value}")
    print(f"{run.data.split.protocol}\n{run.folder}")


def _runs(arguments: argparse.Namespace) -> None:
    table = shelf.table(arguments.folder)
    print(table.to_string(index=False) if len(table) else "No run was trained yet.")


def _compare(arguments: argparse.Namespace) -> None:
    print(shelf.compare(shelf.find(arguments.one), shelf.find(arguments.other)))


def _describe(arguments: argparse.Namespace) -> None:
    data = interactions.load(
        arguments.dataset, min_user=arguments.min_user, min_item=arguments.min_item,
        user=arguments.user, item=arguments.item, time=arguments.time,
    )  # fmt: skip
    print(interactions.describe(data).T.to_string())


def _diagnose(arguments: argparse.Namespace) -> None:
    print(
        diagnosis.diagnose_table(
            arguments.path,
            of=arguments.of,
            n_items=arguments.items,
            sampled_negatives=arguments.sampled_negatives,
            repair=_repair_of(arguments),
        )
    )


def _recommend(arguments: argparse.Namespace) -> None:
    from gsas_lab import serving

    run, repair = shelf.find(arguments.run), _repair_of(arguments)
    if bool(arguments.items) == bool(arguments.output or arguments.vectors):
        raise InputError(
            "recommend takes the items of one history, or --output or --vectors for all users."
        )
    if arguments.items:
        print(run.recommend(arguments.items, arguments.n, repair=repair).to_string(index=False))
    if arguments.output:
        print(serving.recommend_all(run, arguments.output, arguments.n, repair=repair))
    if arguments.vectors:
        print(serving.write_vectors(run, arguments.vectors))


def _repair_of(arguments: argparse.Namespace) -> repairs.Repair | None:
    return None if arguments.repair is None else repairs.load(arguments.repair)


def _repair(arguments: argparse.Namespace) -> None:
    choice = evidence.choose_repair(shelf.find(arguments.run), arguments.top)
    name = arguments.by or choice.name
    if name not in choice.repairs:
        why = choice.table["undefined"].get(name, "it is none of these.")
        raise InputError(f"'{name}': {why} Choose one of {', '.join(choice.repairs)}.")
    path = repairs.save(choice.repairs[name], arguments.output)
    print(f"{choice.table.to_string()}\n\n{choice.why}\n{name}: {path}")


def _notebooks(arguments: argparse.Namespace) -> None:
    dataset = interactions.place(arguments.dataset)
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = files.HOME / "outputs" / f"{Path(dataset).stem}-{stamp}"
    given = dict(map(_parameter, arguments.parameter))
    _publish(dataset, arguments.output or folder, given, arguments.at_once)


def _site(arguments: argparse.Namespace) -> None:
    dataset = interactions.place(arguments.dataset)

    def explorers(folder: Path) -> dict[str, str]:
        from gsas_lab.lessons import gallery, publish

        figures, page = gallery.figures(dataset), "explorers.html"
        return {publish.write_gallery(figures, folder / page, "Explorers", gallery.STORY): page}

    _publish(dataset, arguments.output, {}, arguments.at_once, explorers)


def _publish(
    dataset: str,
    folder: Path,
    given: dict[str, Any],
    at_once: int,
    more: Callable[[Path], dict[str, str]] = lambda _: {},
) -> None:
    """The notebooks' pages with those of docs/, the exercises, and what more(folder) adds."""
    from gsas_lab.lessons import publish

    files.output(folder)  # refused before anything is computed

    def beside(partial: Path) -> dict[str, str]:
        pages = more(partial)
        for source in sorted(DOCS.glob("*.md")):
            pages[publish.write_document(source, partial / f"{source.stem}.html")] = (
                f"{source.stem}.html"
            )
        for file in [*NOTEBOOKS.glob("[es]*/*.ipynb"), *DOCS.glob("*.png")]:
            name = f"{file.parent.name}_{file.name}" if file.suffix == ".ipynb" else file.name
            shutil.copyfile(file, partial / name)
        return pages

    chosen = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not chosen:
        raise InputError(f"{NOTEBOOKS} holds no notebooks: restore or install them.")
    # Refuse bad data and bad settings before anything starts, by the settings of all that follows.
    publish.check_parameters(chosen, {"dataset": dataset} | given, recipes.SHARED)
    Settings(
        **{name: given[name] for name in given if name in recipes.OWN and given[name] is not None}
    )
    shared = {name: given[name] for name in given if name in recipes.SHARED}
    systems = recipes.systems(dataset, **shared)
    data = runs.load_data(next(iter(systems.values())))
    evidence.shown_row(data, given.get("shown_user"))
    protocol = data.split.protocol
    print(recipes.scaling(dataset, **shared))
    index = publish.execute_all(
        chosen,
        folder,
        {"dataset": dataset} | given,
        lambda: evidence.summary(dataset, **shared),
        str(protocol),
        beside,
        recipes.SHARED,
        at_once,
        LONG,
    )
    print(f"\n{evidence.summary(dataset, **shared).to_string()}\n\n{protocol}\n\n{index}")


def _exercises(_arguments: argparse.Namespace) -> None:
    from gsas_lab.lessons.exercises import notebooks

    for path in notebooks.write(NOTEBOOKS):
        print(path)


def _slides(arguments: argparse.Namespace) -> None:
    from gsas_lab.lessons import slides

    for deck in slides.write_all(arguments.executed, arguments.output):
        print(deck)


def _assessment(arguments: argparse.Namespace) -> None:
    from gsas_lab.lessons import assessment

    print(assessment.write(arguments.output, arguments.students, arguments.seed))


def _sweep(arguments: argparse.Namespace) -> None:
    from gsas_lab import results, sweeps

    given = dict(map(_parameter, arguments.parameter))
    given |= {n: v for n in ("dataset", "profile") if (v := getattr(arguments, n)) is not None}
    named = sweeps.read(arguments.grid, **given)
    folder = arguments.output or sweeps.folder_of(arguments.grid.stem, **given)
    cluster = dict(map(_parameter, arguments.cluster)) or None
    table = sweeps.run(named, folder, arguments.at_once, cluster)
    print(f"{results.load(folder).written.to_string()}\n\n{folder}")
    failed = table[table["state"] == "failed"]
    for _, run in failed.iterrows():
        print(f"failed: {run['name']}: {run['error']}", file=sys.stderr)
    if len(failed):
        raise InputError(
            f"{len(failed)} of {counted(len(table), 'run')} failed: the same command tries them "
            "again."
        )


def _report(arguments: argparse.Namespace) -> None:
    from gsas_lab import results

    print(results.write_report(arguments.folder))


def _faults(arguments: argparse.Namespace) -> None:
    print(faults.write_detection(arguments.output))


def _evidence(arguments: argparse.Namespace) -> None:
    if arguments.measures is None:
        print(evidence.write_evidence(arguments.dataset, arguments.output))
    for name in arguments.measures or ():
        print(evidence.write_measures(shelf.find(name), arguments.output))


def _queue(arguments: argparse.Namespace) -> None:
    from gsas_lab import ledger

    if arguments.status:
        print(ledger.standing())
        return
    print(ledger.work(seconds=arguments.budget, at_once=arguments.at_once))


def _documents(_arguments: argparse.Namespace) -> None:
    from gsas_lab import documents

    for path in documents.write():
        print(path)


def _parameter(text: str) -> tuple[str, Any]:
    import json

    name, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"Parameter '{text}' has no value: write it as name=value.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m gsas_lab", description=__doc__)
    parser.add_argument(
        "--parts",
        metavar="FILE",
        help="Python file that registers losses, samplers or models of yours",
    )
    commands = parser.add_subparsers(required=True, parser_class=_Command)

    train = commands.add_parser(
        "train", help="train one run, or find it", formatter_class=argparse.RawTextHelpFormatter
    )
    train.add_argument(
        "--recipe", choices=recipes.RECIPES, default="sasrec", help="where to start from"
    )
    train.add_argument(
        "--profile",
        choices=recipes.PROFILES,
        default="quick",
        help="the budget: half a minute, minutes (if nothing is said), or the paper's hours to days",
    )
    parsers: dict[Any, Any] = {
        bool: _truth, bool | None: _truth_or_none, str | None: str, bool | str: str,
    }  # fmt: skip
    for item in fields(Settings):
        default = item.default
        train.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=parsers.get(item.type, item.type),
            default=argparse.SUPPRESS,
            choices=item.metadata["choices"] or None,
            metavar=None if item.metadata["choices"] else "X",
            help=f"{item.metadata['help']} (recipe's default; the paper's SASRec: {default})",
        )
    train.set_defaults(command=_train)

    listed = commands.add_parser("runs", help="what was trained: system, data, metrics, date")
    listed.add_argument("folder", type=_path, nargs="?", help="of run folders; none: outputs/runs")
    listed.set_defaults(command=_runs)

    compared = commands.add_parser(
        "compare", help="two runs: settings that differ, metrics, a paired test over users"
    )
    for name in ("one", "other"):
        compared.add_argument(name, help="a run folder, or the start of a name as `runs` lists it")
    compared.set_defaults(command=_compare)

    describe = commands.add_parser("describe", help="sizes of a data set")
    describe.add_argument("dataset")
    describe.add_argument("--min-user", type=int, default=1)
    describe.add_argument("--min-item", type=int, default=1)
    for name in ("user", "item", "time"):
        describe.add_argument(
            f"--{name}", help=Settings.__dataclass_fields__[name].metadata["help"]
        )
    describe.set_defaults(command=_describe)

    sweep = commands.add_parser("sweep", help="train a grid of runs, side by side")
    sweep.add_argument(
        "grid", type=_path, help="a TOML file, such as notebooks/sweeps/figure3.toml"
    )
    sweep.add_argument("--dataset", help="instead of the file's")
    sweep.add_argument("--profile", choices=recipes.PROFILES, help="instead of the file's")
    sweep.add_argument(
        "--output", type=_path, help="folder; outputs/<grid>-<what is given> if none"
    )
    sweep.add_argument("--at-once", type=int, help="runs side by side; none: one a core or GPU")
    sweep.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="a setting of every run, over the file's",
    )  # fmt: skip
    sweep.add_argument(
        "--cluster", action="append", default=[], metavar="NAME=VALUE",
        help="one Slurm job a run, with these parameters of submitit, as in partition=gpu",
    )  # fmt: skip
    sweep.set_defaults(command=_sweep)

    report = commands.add_parser(
        "report", help="one page about a sweep, beside the paper's numbers"
    )
    report.add_argument("folder", type=_path, help="the sweep's, such as outputs/figure3")
    report.set_defaults(command=_report)

    diagnose = commands.add_parser(
        "diagnose", help="is a recommender overconfident? from its scores, see docs/your-data.md"
    )
    diagnose.add_argument(
        "path", help="csv, tsv, jsonl (or .gz of these), parquet, npy: user, item, score, clicked"
    )
    diagnose.add_argument("--of", choices=diagnosis.OF, help="what score holds; none: logits")
    diagnose.add_argument("--items", type=int, help="size of the catalogue, for a partial table")
    diagnose.add_argument(
        "--sampled-negatives", action="store_true",
        help="the rows are all clicks and uniformly sampled other items; needs --items",
    )  # fmt: skip
    diagnose.add_argument("--repair", type=_path, help="diagnose what this repair (.json) makes")
    diagnose.set_defaults(command=_diagnose)

    recommend = commands.add_parser(
        "recommend", help="what comes next after a history of items, or for all users"
    )
    recommend.add_argument("run", help="a run folder, or the start of a name as `runs` lists it")
    recommend.add_argument(
        "items", nargs="*", help="the history, oldest first: ids or exact titles"
    )
    recommend.add_argument("--n", type=int, default=10, help="how many")
    recommend.add_argument("--repair", type=_path, help="probabilities by this repair (.json)")
    recommend.add_argument(
        "--output", type=_path, help="for all users of its data set: a parquet file to write"
    )
    recommend.add_argument(
        "--vectors", type=_path, help="a folder for vectors of users and items (.npy), for an index"
    )
    recommend.set_defaults(command=_recommend)

    repair = commands.add_parser(
        "repair", help="choose what makes a run's probabilities right, by its validation users"
    )
    repair.add_argument("run", help="a run folder, or the start of a name as `runs` lists it")
    repair.add_argument("output", type=_path, help="a file to write, such as repair.json")
    repair.add_argument("--top", type=int, help="judge by each user's first so many items alone")
    repair.add_argument(
        "--by", help=f"instead of the chosen one: {', '.join(repairs.FITS)}, analytic"
    )
    repair.set_defaults(command=_repair)

    notebooks = commands.add_parser("notebooks", help="execute the notebooks and make their pages")
    notebooks.add_argument("--dataset", default="known-truth")
    notebooks.add_argument("--output", type=_path, help="folder; outputs/<data set>-<time> if none")
    notebooks.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="a setting for all notebooks, or a parameter for those that declare it",
    )  # fmt: skip
    notebooks.set_defaults(command=_notebooks)

    site = commands.add_parser("site", help="pages for readers without a kernel: outputs/site")
    site.add_argument("--dataset", default="known-truth")
    site.add_argument("--output", type=_path, default=files.HOME / "outputs" / "site")
    site.set_defaults(command=_site)
    for command in (notebooks, site):
        command.add_argument(
            "--at-once", type=int, default=min(2, threads.cores()),
            help="notebooks side by side; none: two, if there are two cores",
        )  # fmt: skip

    exercises = commands.add_parser("exercises", help="make the exercises from their solutions")
    exercises.set_defaults(command=_exercises)

    slides = commands.add_parser("slides", help="reveal.js decks of what `site` executed")
    slides.add_argument(
        "--executed", type=_path, default=files.HOME / "outputs" / "site", help="executed notebooks"
    )
    slides.add_argument("--output", type=_path, default=files.HOME / "outputs" / "slides")
    slides.set_defaults(command=_slides)

    assessment = commands.add_parser(
        "assessment", help="a table with one planted fault for each student, and the key"
    )
    assessment.add_argument("--students", type=int, default=30)
    assessment.add_argument("--seed", type=int, default=1, help="the same seed, the same tables")
    assessment.add_argument("--output", type=_path, default=files.HOME / "outputs" / "assessment")
    assessment.set_defaults(command=_assessment)

    evidence = commands.add_parser("evidence", help="the summary table and what made each number")
    evidence.add_argument("--dataset", default="known-truth")
    evidence.add_argument("--output", type=_path, default=files.ROOT / "outputs" / "reference")
    evidence.add_argument(
        "--measures", nargs="+", metavar="RUN",
        help="these runs by every measure of calibration and every group, raw and repaired, instead",
    )  # fmt: skip
    evidence.set_defaults(command=_evidence)

    planted = commands.add_parser(
        "faults", help="which measure of calibration sees which planted fault, at three sizes"
    )
    planted.add_argument(
        "--output", type=_path, default=files.ROOT / "outputs" / "reference" / "calibration"
    )
    planted.set_defaults(command=_faults)

    queue = commands.add_parser("queue", help="train what outputs/reference/queue.toml asks for")
    queue.add_argument(
        "--budget", type=float, default=math.inf, help="seconds; none: until all of it is done"
    )
    queue.add_argument("--status", action="store_true", help="what is done and what is left")
    queue.add_argument("--at-once", type=int, help="runs side by side; none: one a core or GPU")
    queue.set_defaults(command=_queue)

    documents = commands.add_parser(
        "documents",
        help="README's tables, docs/reproduction.md and docs/overconfidence.png from the evidence",
    )
    documents.set_defaults(command=_documents)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help explains each word.")


class _Command(_Parser):
    """Its words may stand before, between and after its options, a list of them too."""

    mixed = False  # argparse calls `parse_known_args` again from within the mixed form

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.mixed:
            return super().parse_known_args(args, namespace)
        self.mixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixed = False


def _path(text: str) -> Path:
    try:
        return files.chosen(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _truth_or_none(text: str) -> bool | None:
    return None if text.lower() == "none" else _truth(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


if __name__ == "__main__":
    sys.exit(main())
