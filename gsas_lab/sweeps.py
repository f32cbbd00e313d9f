"""Many runs -> one table: a grid from a TOML file, trained side by side or on a cluster.

    recipe = "gsasrec"        # where each run starts from: a key of recipes.RECIPES
    profile = "quick"         # its budget: a key of recipes.PROFILES; none: the recipe's own
    dataset = "ml-1m"         # any setting may stand here and is the same for all runs
    [grid]                    # every combination, the first key slowest
    k = [1, 4, 16]
    t = [0.0, 0.5, 1.0]
    [[runs]]                  # and, or instead, runs one by one, each of which may have
    recipe = "sasrec-softmax" # a recipe, a profile, a name, settings and a [runs.grid]

Killed at any moment, the same call goes on: finished runs are found, broken-off ones resumed.
"""

import csv
import difflib
import importlib.util
import io
import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsas_lab import files, parts, recipes, runs
from gsas_lab.errors import Busy, InputError
from gsas_lab.settings import OF_DATA, Settings
from gsas_lab.threads import cores
from gsas_lab.training import HISTORY

Show = Callable[[pd.DataFrame], None]

READ = ("sweep.json", "results.csv", "histories.csv", "ranks.npz")  # by `results.load`
PARQUET = "results.parquet"  # where pyarrow is installed
CURVES = "curves.csv"  # of folders of the ledger
WRITTEN = (*READ, PARQUET, files.MANIFEST)
MOST = 100_000  # runs of a sweep
_FIELDS = [item.name for item in fields(Settings)]
_SHARED = (  # parameters that every executor of submitit knows; all others are Slurm's
    "name timeout_min mem_gb nodes cpus_per_task gpus_per_node tasks_per_node stderr_to_stdout"
).split()


# --- a file -> named settings ---------------------------------------------------------------------


def read(path: str | Path, /, **over: Any) -> dict[str, Settings]:
    """The runs that a TOML file asks for, by name, in its order; see the head of this module.

    over: a recipe, a profile or settings that win over the file's. Settings that are written out
    win over a profile's. Of two runs with the same settings, the first is kept. A name says what
    varies: "k = 1, t = 0.5", after the system's name where recipes differ.

    InputError if the file cannot be read, asks for nothing, or holds an unknown key or a value that
    no run can have.
    """
    path = files.chosen(path, "grid")
    try:
        table = tomllib.loads(files.read(path).decode("utf-8-sig"))  # Windows editors leave a BOM
    except InputError as error:
        raise InputError(f"{error} Name a TOML file.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not TOML: it is not UTF-8. Save it as that.") from None
    except RecursionError:
        raise InputError(f"{path} is not TOML of a grid: it is nested too deeply.") from None
    except ValueError as error:  # with line and column
        raise InputError(f"{path} is not TOML: {error}.") from None
    grid, single = table.pop("grid", {}), table.pop("runs", [])
    if not isinstance(single, list) or not all(isinstance(entry, dict) for entry in single):
        raise InputError(f"{path}: write single runs as [[runs]] tables.")
    entries = [{"grid": grid}, *single] if grid else single
    if not entries:
        raise InputError(f"{path} asks for no run: add a [grid] with values or [[runs]].")
    _refuse_unknown(path, table, ("grid", "runs"))
    _refuse_unknown("the call", over, ())
    if (count := sum(_count(path, entry.get("grid", {})) for entry in entries)) > MOST:
        raise InputError(f"{path} asks for {count:,} runs: the most is {MOST:,}; ask for fewer.")

    asked = []  # (a name if one is given, what it asks for itself, the settings)
    for entry in entries:
        _refuse_unknown(path, entry, ("name", "grid"))
        for point in _points(entry.get("grid", {})):
            given = {k: v for k, v in entry.items() if k not in ("name", "grid")} | point
            choice = {"recipe": "sasrec"} | table | given | over
            name = str(entry.get("name", ""))
            own = {key: choice[key] for key in ("recipe", *(point if name else given))}
            try:
                asked.append((name, own, _settings(choice)))
            except InputError as error:
                which = ", ".join([name] * bool(name) + list(map(_pair, own, own.values())))
                raise InputError(f"{path}, run '{which}': {error}") from None

    varied = {
        key
        for key in {key for _, own, _ in asked for key in own}
        if len({getattr(settings, key, own.get(key)) for _, own, settings in asked}) > 1
    }
    found: dict[str, Settings] = {}
    known: set[Settings] = set()
    for name, own, settings in asked:
        if settings in known:
            continue
        known.add(settings)
        first = name or (settings.name if "recipe" in varied else "")
        pairs = [_pair(key, own[key]) for key in own if key in varied and key != "recipe"]
        parts = [first, *(pair for pair in pairs if pair not in first.split(", "))]
        name = ", ".join(filter(None, parts)) or settings.name
        if name in found:
            raise InputError(f"{path}: two runs are called '{name}'; give each a name of its own.")
        found[name] = settings
    return found


def folder_of(grid: str, /, **over: Any) -> Path:
    """Where a sweep is kept if nobody says where: outputs/<grid>-<what is given over its file>."""
    parts = [grid, Path(str(over.pop("dataset", ""))).stem, over.pop("profile", "")]
    parts += [f"{name}={value}" for name, value in over.items()]
    return files.HOME / "outputs" / "-".join(filter(None, parts))


def _settings(choice: dict[str, Any]) -> Settings:
    choice = dict(choice)
    return recipes.settings(choice.pop("recipe"), choice.pop("profile", "paper"), choice)


def _count(path: Path, grid: Any) -> int:
    """How many combinations a grid has; InputError if it is none."""
    if not isinstance(grid, dict):
        raise InputError(f"{path}: write a grid as a table of lists, such as k = [1, 4].")
    _refuse_unknown(path, grid, ())
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: {key} = {values} in a grid: write a list, such as [1, 4].")
    return math.prod(map(len, grid.values()))


def _points(grid: dict[str, list]) -> list[dict[str, Any]]:
    """Every combination of a grid's values; of an empty one the one that asks for nothing."""
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def _refuse_unknown(where: Any, given: Iterable[str], also: tuple[str, ...]) -> None:
    known = [*_FIELDS, "recipe", "profile", *also]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known) or known
            raise InputError(f"{where}: unknown key '{key}'; did you mean {' or '.join(close)}?")


def _pair(key: str, value: Any) -> str:
    return f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}"


# --- named settings -> a table --------------------------------------------------------------------


@dataclass
class _Job:
    """One run of a sweep and how far it is."""

    settings: Settings
    run: str = ""  # its folder's name; none if its data cannot be loaded
    state: str = "waiting"  # waiting, training, elsewhere (in another process), found, done, failed
    epoch: int = 0
    ndcg: float = math.nan  # validation NDCG@10 of that epoch
    epochs_seen: int = 0  # in this call,
    seconds: float = 0.0  # which took so long
    tries: int = 0
    error: str | None = None

    def ends(self, state: str, error: str | None = None) -> None:
        self.state, self.error = state, error

    @property
    def open(self) -> bool:
        return self.state in ("waiting", "training", "elsewhere")

    @property
    def pace(self) -> float:
        """Seconds a pass, validation included; 0 before the first."""
        return self.seconds / self.epochs_seen if self.epochs_seen else 0.0

    @cached_property
    def trained(self) -> runs.Run:
        return runs.Run(self.settings, files.runs_folder() / self.run)

    @property
    def finished(self) -> bool:
        return (self.trained.folder / files.MANIFEST).exists()

    def unreadable(self) -> str | None:
        """The sentence about what the table needs of the finished run and cannot have."""
        try:
            _ = self.trained.metrics, self.trained.environment, self.trained.history
            _ = self.trained.ranks
        except InputError as error:
            self.__dict__.pop("trained")  # which keeps what it has read
            return str(error)
        return None


def run(
    named: dict[str, Settings],
    folder: str | Path,
    at_once: int | None = None,
    cluster: dict[str, Any] | None = None,
    show: Show | None = None,
) -> pd.DataFrame:
    """Train all runs that were not trained before -> one row a run, in the order of `named`.

    Columns: name, run (its folder), state (done or failed), profile, every setting, every number of
    metrics.json, commit, date, "trained on", and the sentence of a failed run's error. The same in
    folder/results.csv and, where pyarrow is installed, results.parquet; every test user's rank in
    ranks.npz; every epoch in histories.csv; what was asked for, with protocol and environment, in
    sweep.json; the checksum of each file in manifest.json.

    at_once: runs side by side; none: as many as there are GPUs, or cores where there are none. Each
    is a process of its own with an equal share of the cores. One that dies, or fails by anything
    but its settings, is tried once more; then it counts as failed and the others go on. What it
    said is in folder/<run>.log.
    cluster: parameters of submitit for one Slurm job a run, e.g. {"partition": "gpu",
    "gpus_per_node": 1, "timeout_min": 600} (a day if not said); {"cluster": "local"} for processes
    of this machine. Jobs are not tried twice: the same call goes on.
    show(progress): called at most twice a second with a row for each run and one for all: state,
    epoch, validation NDCG@10, time left at most (a run may stop early). None: on the screen.

    A run that another process is training, of another sweep or alone, is waited for and taken as it
    is; if that process ends before the run does, the run is trained here, after its last epoch.

    InputError if another sweep works in this folder, if it is no place for results or holds files of
    these names that are of no sweep, and if this machine cannot do what is asked for.
    """
    folder = files.output(folder)
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once = {at_once}: choose 1 or more.")
    _refuse_others(folder)
    try:
        with files.locked(folder):
            return _run(named, folder, at_once, cluster, show or _screen())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same call goes on after the last epochs") from None


def _refuse_others(folder: Path) -> None:
    """InputError for a file that a sweep would overwrite and that no sweep has written."""
    ours = False
    with suppress(InputError):
        ours = {"environment", "runs"} <= files.read_json(folder / "sweep.json").keys()
    for name in () if ours else WRITTEN:
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} is of no sweep and would be overwritten: choose another folder, or "
                "move it away."
            )


def _run(
    named: dict[str, Settings],
    folder: Path,
    at_once: int | None,
    cluster: dict[str, Any] | None,
    show: Show,
) -> pd.DataFrame:
    jobs, by_run, record = _jobs(named)
    environment = runs.environment(runs.choose_device("auto"))
    asked = {"environment": environment, "manifest": True, "runs": record}
    with suppress(FileNotFoundError):  # what is there is no whole sweep from now on
        (folder / files.MANIFEST).unlink()
    files.write_json(folder / "sweep.json", asked)

    waiting = [job for job in by_run.values() if job.open]
    tell = _teller(jobs, show)
    if waiting and cluster is not None:
        _on_cluster(waiting, folder, cluster, at_once, tell)
    elif waiting:
        _side_by_side(waiting, folder, at_once, len(by_run), tell)
    if any(job.run != record[name].get("run", "") for name, job in jobs.items()):
        for name, job in jobs.items():  # as their nodes called them
            record[name] |= {"run": job.run} if job.run else {}
        files.write_json(folder / "sweep.json", asked)
    for job in by_run.values():
        if not job.error and (error := job.unreadable()):
            job.ends("failed", error)
    tell(True)

    table = pd.DataFrame([{"name": name} | _row(job) for name, job in jobs.items()])
    if importlib.util.find_spec("pyarrow"):
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        files.write(folder / PARQUET, content.getvalue())
    done = {name: job.trained for name, job in jobs.items() if job.run and not job.error}
    histories = {name: run.history for name, run in done.items()}
    write(folder, table, histories, {name: run.ranks for name, run in done.items()})
    return table


def write(
    folder: Path,
    table: pd.DataFrame,
    histories: dict[str, pd.DataFrame],
    ranks: dict[str, np.ndarray],
) -> None:
    """What `results.load` reads beside sweep.json, which is there already: table has a row a run,
    "name" first, as `run` returns it; histories and ranks are of the finished ones, by name.
    """
    told = [history.assign(name=name) for name, history in histories.items()]
    files.write(folder / "histories.csv", _csv(_together(told)))
    files.write(folder / "ranks.npz", _ranks([ranks.get(name) for name in table["name"]]))
    files.write(folder / "results.csv", _csv(table))
    seal(folder)


def seal(folder: Path) -> None:
    """Write the manifest, which says that a sweep is whole: the checksum of each of its files."""
    named = [folder / name for name in (*READ, PARQUET, CURVES)]
    sums = {path.name: files.checksum(files.read(path)) for path in named if path.exists()}
    files.write_manifest(folder, {"format": runs.FORMAT, "files": sums})


def train(
    named: dict[str, Settings],
    folder: str | Path,
    at_once: int | None = None,
    show: Show | None = None,
    seconds: float = math.inf,
) -> dict[str, runs.Run]:
    """Train what was not trained before, for at most so many seconds -> the finished runs by name.

    In the order of `named`, side by side as in `run`. A pass that would not end in time is not
    begun: the next call goes on after the last whole one. folder: for the words of what fails,
    which is left out of what is returned.
    """
    folder = files.output(folder)
    if not seconds > 0:  # NaN would never be over
        raise InputError(f"{seconds:g} seconds are no time to train in: give a number above 0.")
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once = {at_once}: choose 1 or more.")
    until = time.monotonic() + seconds
    with files.locked(folder):
        jobs, by_run, _ = _jobs(named)
        waiting = [job for job in by_run.values() if job.open]
        if waiting:
            tell = _teller(jobs, show or _screen())
            _side_by_side(waiting, folder, at_once, len(by_run), tell, until)
            tell(True)
        for job in by_run.values():
            if not job.open and not job.error and (error := job.unreadable()):
                job.ends("failed", error)
    for name, job in jobs.items():
        if job.error:
            print(f"failed: {name}: {job.error}", file=sys.stderr)
    return {name: job.trained for name, job in jobs.items() if not job.open and not job.error}


def _jobs(
    named: dict[str, Settings],
) -> tuple[dict[str, _Job], dict[str, _Job], dict[str, Any]]:
    """What is to be done, by name and by run, and what was asked for, for sweep.json."""
    jobs: dict[str, _Job] = {}  # two names of the same settings share one
    by_run: dict[str, _Job] = {}
    record: dict[str, Any] = {}
    loaded: dict[tuple, tuple[runs.Data, dict] | InputError] = {}  # each data set once
    for name, settings in named.items():
        record[name] = {"settings": asdict(settings)}
        key = tuple(getattr(settings, item) for item in OF_DATA)
        if key not in loaded:
            try:
                data = runs.load_data(settings)
                loaded[key] = data, data.split.protocol.as_dict()
            except InputError as error:
                loaded[key] = error
        try:
            if isinstance(found := loaded[key], InputError):
                raise found
            run = runs.identity(settings, found[0])
        except InputError as error:
            jobs[name] = _Job(settings)
            jobs[name].ends("failed", str(error))
            continue
        jobs[name] = by_run.setdefault(run, _Job(settings, run))
        record[name] |= {"run": run, "protocol": found[1]}
    for job in by_run.values():
        if job.finished and not job.unreadable():
            job.ends("found")
    return jobs, by_run, record


def _row(job: _Job) -> dict[str, Any]:
    if job.run and not job.error:
        return row_of(job.trained) | {"error": None}
    row = {"run": job.run, "state": "failed", "profile": recipes.profile_of(job.settings)}
    return row | asdict(job.settings) | {"error": job.error}


def row_of(run: runs.Run) -> dict[str, Any]:
    """A finished run's row of results.csv, but for its name."""
    row = {"run": run.folder.name, "state": "done", "profile": recipes.profile_of(run.settings)}
    row |= asdict(run.settings)
    for key, value in run.metrics.items():
        if isinstance(value, list):  # an interval
            row |= {f"{key} low": value[0], f"{key} high": value[1]}
        elif key != "device":
            row["epochs trained" if key == "epochs" else key] = value
    row |= {"commit": run.environment["commit"], "date": run.environment["date"]}
    return row | {"trained on": run.environment["device"]}


def _csv(table: pd.DataFrame) -> bytes:
    """Text is quoted, so that a name may hold a line's end, and "" is told from none."""
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode(errors="backslashreplace")


def _together(histories: list[pd.DataFrame]) -> pd.DataFrame:
    known = [history for history in histories if len(history)]
    return pd.concat(known).round(6) if known else pd.DataFrame(columns=[*HISTORY, "name"])


def _ranks(measured: list[np.ndarray | None]) -> bytes:
    """The finished runs' ranks as an .npz: for the run in row n of the table, "n" (n_users,)."""
    content = io.BytesIO()
    found = {str(place): ranks for place, ranks in enumerate(measured) if ranks is not None}
    small: dict[str, Any] = {
        n: r.astype(np.uint16) if r.max() < 1 << 16 else r for n, r in found.items()
    }
    np.savez_compressed(content, **small)
    return content.getvalue()


# --- on this machine ------------------------------------------------------------------------------


class _Worker:
    """A process that trains one run after another, for as long as this process lives.

    A fresh interpreter with its own threads and GPU rather than a fork, and no `multiprocessing`
    either: that would execute the caller's script once more in each of them.
    """

    job: _Job  # the one it trains, or trained last
    working = False

    def __init__(self, log: Path, threads: int, gpu: str | None):
        self.gpu = gpu
        self.connection, theirs = Pipe()
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(files.ROOT), os.getenv("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(threads),
            "TQDM_DISABLE": "1",  # the parent shows the progress
        }
        if gpu is not None:
            own["CUDA_VISIBLE_DEVICES"] = gpu
        serve = f"from gsas_lab import sweeps; sweeps._serve({theirs.fileno()}, {threads})"
        with open(log, "ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", serve],
                env=os.environ | own, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=said, stderr=said, start_new_session=True,  # Ctrl-C is the parent's affair
            )  # fmt: skip
        theirs.close()

    def train(self, job: _Job, log: Path) -> None:
        self.job, self.working, job.state = job, True, "training"
        with suppress(OSError):  # it has just died, which the parent is about to notice
            self.connection.send((job.settings, str(log)))

    def stop(self) -> None:
        """End it at once, which a training survives."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _serve(descriptor: int, threads: int) -> None:
    """What a worker does: (settings, log) in; ("epoch", …) and one of ("done",), ("elsewhere",) for
    a run that another process trains, or ("failed", why) out.
    """
    torch.set_num_threads(threads)
    connection = Connection(descriptor)
    asked: SimpleQueue[tuple[Settings, str]] = SimpleQueue()

    def listen() -> None:
        try:
            while True:
                asked.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)  # the parent is gone: nobody waits for this training any more

    threading.Thread(target=listen, daemon=True).start()
    while True:
        settings, log = asked.get()
        with open(log, "ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        last = time.perf_counter()

        def tell(history: list[dict[str, float]]) -> None:
            nonlocal last
            now = time.perf_counter()
            connection.send(("epoch", len(history), history[-1]["ndcg@10"], now - last))
            last = now

        try:
            runs.train(settings, tell)
            connection.send(("done",))
        except Busy:
            connection.send(("elsewhere",))
        except InputError as error:  # it would fail alike again; anything else ends this process
            connection.send(("failed", str(error)))


def _side_by_side(
    jobs: list[_Job],
    folder: Path,
    at_once: int | None,
    of: int,
    tell: Callable[[], None],
    until: float = math.inf,
) -> None:
    """Train with several workers.

    of: runs of the whole sweep, so that one that goes on gives each run as many threads as before.
    until: the moment, of time.monotonic, by which all workers have stopped; a worker stops earlier
    where its next pass would not end in time.
    """
    on_gpu = any(job.settings.device in ("auto", "cuda") for job in jobs)
    gpus = _gpus() if on_gpu else []
    at_once = min(at_once or len(gpus) or cores(), of)
    threads = max(1, cores() // at_once)
    free = [gpus[i % len(gpus)] if gpus else None for i in range(at_once)]
    waiting = deque(jobs)
    workers: list[_Worker] = []
    try:
        while any(job.open for job in jobs) and (left := until - time.monotonic()) > 0:
            idle = [worker for worker in workers if not worker.working]
            if left < max(job.pace for job in jobs):
                waiting.clear()
                if len(idle) == len(workers):
                    break
            while waiting and (idle or free):
                job = waiting.popleft()
                log = folder / f"{job.run}.log"
                if not idle:
                    idle.append(_Worker(log, threads, free.pop(0)))
                    workers.append(idle[0])
                idle.pop().train(job, log)
            tell()
            ready = wait([worker.connection for worker in workers], timeout=0.5)
            waiting.extend(_come_back(jobs))
            for worker in [worker for worker in workers if worker.connection in ready]:
                job, log = worker.job, folder / f"{worker.job.run}.log"
                try:
                    kind, *said = worker.connection.recv()
                except (EOFError, OSError):  # it died
                    code = worker.process.wait()
                    worker.stop()
                    workers.remove(worker)
                    free.append(worker.gpu)
                    job.tries += job.open
                    if job.open and job.tries == 2:
                        job.ends("failed", _why(code, log))
                    elif job.open:
                        job.ends("waiting")
                        waiting.appendleft(job)
                    continue
                if kind == "epoch":
                    job.epoch, job.ndcg = said[:2]
                    job.epochs_seen, job.seconds = job.epochs_seen + 1, job.seconds + said[2]
                    if job.epoch < job.settings.epochs and until - time.monotonic() < job.pace:
                        worker.stop()
                        workers.remove(worker)
                        job.ends("waiting")
                else:
                    worker.working = False
                    job.ends(kind, *said)
                    if not log.stat().st_size:
                        log.unlink()
    finally:
        for worker in workers:
            worker.stop()


def _come_back(jobs: list[_Job]) -> list[_Job]:
    """Runs that another process was training: found if it has ended them, else to be trained."""
    back = []
    for job in jobs:
        if job.state == "elsewhere" and not files.busy(job.trained.folder):
            if job.finished and not job.unreadable():
                job.ends("found")
            else:
                job.ends("waiting")
                back.append(job)
    return back


def _why(code: int, log: Path) -> str:
    """The sentence for a worker that ended with this status, as Popen tells it, for good."""
    if code == -9:
        return (
            "Worker killed by signal 9 twice: probably out of memory; lower batch_size or run "
            "fewer at once."
        )
    if code < 0:
        return f"Worker killed by signal {-code} twice: see {log}."
    lines = log.read_text("utf-8", "replace").splitlines() or ["no word"]
    return f"Failed twice ({lines[-1]}): see {log}."


def _gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = range(torch.cuda.device_count())
    return [named.split(",")[i].strip() for i in found] if named else [str(i) for i in found]


# --- on a cluster ---------------------------------------------------------------------------------


def _on_cluster(
    jobs: list[_Job],
    folder: Path,
    cluster: dict[str, Any],
    at_once: int | None,
    tell: Callable[[], None],
) -> None:
    try:
        import submitit
    except ImportError:
        raise InputError('A cluster needs submitit: pip install -e ".[cluster]".') from None

    given = {"timeout_min": 24 * 60} | cluster
    kind = given.pop("cluster", "slurm")
    threads = None
    if kind == "local":
        threads = max(1, cores() // len(jobs))
        if len(jobs) > cores():
            raise InputError(
                f"submitit's local executor starts all {len(jobs)} runs at once on {cores()} "
                "cores: ask for fewer, or leave cluster out."
            )
    try:
        executor = submitit.AutoExecutor(folder / "cluster", cluster=kind)
        executor.update_parameters(
            slurm_array_parallelism=at_once or len(jobs),
            **{name if name in _SHARED else f"slurm_{name}": given[name] for name in given},
        )
        settings = [job.settings for job in jobs]
        given_parts = os.environ.get(parts.VARIABLE, "")  # a cluster may not hand it on
        shared = [threads] * len(jobs), [given_parts] * len(jobs)
        tasks = executor.map_array(_train_alone, settings, *shared)
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        reason = (str(error).splitlines() or ["it was refused"])[0]
        raise InputError(f"cluster = {cluster} cannot be had: {reason}") from None
    try:
        while any(job.open for job in jobs):
            for job, task in zip(jobs, tasks, strict=True):
                if job.open and task.done():
                    try:
                        run, said = task.result()
                        job.run = run or job.run
                        job.__dict__.pop("trained", None)
                    except Exception as error:  # whatever the node raised, or its own death
                        lines = str(error).strip().splitlines() or [type(error).__name__]
                        said = f"Its job failed ({lines[-1]}): see {task.paths.stderr}."
                    job.ends("failed" if said else "done", said)
                elif job.open and task.state == "RUNNING":
                    job.state = "training"
            tell()
            time.sleep(0.5)
    finally:
        for job, task in zip(jobs, tasks, strict=True):
            if job.open:
                task.cancel()


def _train_alone(
    settings: Settings, threads: int | None, given_parts: str
) -> tuple[str, str | None]:
    """What a job of a cluster does -> its run, and the sentence of what is wrong with the settings.

    The run's name holds the kind of device, and only the node knows what "auto" comes down to.
    """
    os.environ[parts.VARIABLE] = given_parts
    if threads:
        torch.set_num_threads(threads)
    while True:
        try:
            return runs.train(settings).folder.name, None
        except Busy:
            time.sleep(5)  # another process trains this run: wait for it
        except InputError as error:
            return "", str(error)


# --- progress -------------------------------------------------------------------------------------


def _teller(jobs: dict[str, _Job], show: Show) -> Callable[..., None]:
    """A function that shows how far the jobs are, at most twice a second or else right `now`."""
    last = -math.inf

    def tell(now: bool = False) -> None:
        nonlocal last
        if now or time.monotonic() - last >= 0.5:
            last = time.monotonic()
            show(_progress(jobs))

    return tell


def _progress(jobs: dict[str, _Job]) -> pd.DataFrame:
    """Index: names, and "all". Columns: state, epoch, NDCG@10 (validation), left (h:mm:ss)."""
    seen = sum(job.epochs_seen for job in jobs.values())
    pace = sum(job.seconds for job in jobs.values()) / seen if seen else math.nan
    rows, left = {}, [0.0]
    for name, job in jobs.items():
        own = job.pace or pace
        left.append((job.settings.epochs - job.epoch) * own if job.open else 0.0)
        epoch = f"{job.epoch}/{job.settings.epochs}" if job.epoch else ""
        rows[name] = (job.state, epoch, job.ndcg, _clock(left[-1]))
    ended = sum(not job.open for job in jobs.values())
    busy = sum(job.state == "training" for job in jobs.values()) or 1
    rows["all"] = (f"{ended} of {len(jobs)}", "", math.nan, _clock(max(*left, sum(left) / busy)))
    columns = ["state", "epoch", "NDCG@10", "left"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _clock(seconds: float) -> str:
    if not seconds or math.isnan(seconds):
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _screen() -> Show:
    """A table that is redrawn, in Jupyter or in a terminal; elsewhere a line when a state changes."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        from IPython.display import HTML, display

        handle = display(HTML(), display_id=True)
        return lambda table: handle.update(
            HTML(_at_most(50, table).to_html(na_rep="", float_format="{:.4f}".format))
        )
    if not sys.stderr.isatty():
        return _lines()
    drawn = 0

    def redraw(table: pd.DataFrame) -> None:
        nonlocal drawn
        size = shutil.get_terminal_size()
        table = _at_most(size.lines - 2, table)  # what has scrolled away cannot be redrawn
        text = table.to_string(na_rep="", float_format="{:.4f}".format).splitlines()
        lines = "".join(line[: size.columns - 1] + "\n" for line in text)
        print(f"\x1b[{drawn}A\x1b[J" * bool(drawn) + lines, end="", file=sys.stderr, flush=True)
        drawn = len(text)

    return redraw


def _at_most(lines: int, progress: pd.DataFrame) -> pd.DataFrame:
    """All rows of a progress, or where they are too many those in training, and the last."""
    if len(progress) <= lines:
        return progress
    training = progress[progress["state"] == "training"]
    return pd.concat([training.head(lines - 1), progress.tail(1)])


def _lines() -> Show:
    before: dict[Any, str] = {}

    def show(table: pd.DataFrame) -> None:
        for name, state in table["state"].items():
            if name != "all" and state != before.get(name, "waiting"):
                before[name] = state
                print(f"{name}: {state}", file=sys.stderr, flush=True)

    return show
