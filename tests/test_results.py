"""A sweep's tables say what its ranks say, and its report can be trusted and sent to anybody."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from gsas_lab import files, metrics, paper, recipes, results, sweeps
from gsas_lab.__main__ import main
from gsas_lab.errors import InputError
from gsas_lab.settings import Settings

TINY = {
    "d": 8, "blocks": 1, "max_length": 8, "epochs": 1, "validation_users": 50, "device": "cpu",
}  # fmt: skip
KS = [1, 4, 16, 64, 256]
TABLE_3 = ["Popularity", "MF-BPR", "BERT4Rec", "SASRec, softmax", "SASRec", "gSASRec"]
SHARED = "SASRec, shared negatives"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with toy.csv: 300 items, more than 256 negatives. Runs and caches go there too."""
    folder = tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(1)
    lines = [f"{user},{item}" for user in range(300) for item in rng.integers(1, 301, size=10)]
    (folder / "toy.csv").write_text("\n".join(["user,item", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSAS_LAB_CACHE", str(folder / "cache"))
        patch.setenv("GSAS_LAB_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def mixed(place):
    """The folder of Table 3's sweep on the toy data, with a run that fails."""
    named = sweeps.read(results.SWEEPS / "table3.toml", dataset=str(place / "toy.csv"), **TINY)
    named["too <many>"] = replace(named["gSASRec"], k=500)
    sweeps.run(named, place / "mixed", show=lambda _: None)
    return place / "mixed"


@pytest.fixture(scope="module")
def figures(place):
    """The folders of Figures 3 and 4, each from one command that was killed and given again."""
    return {name: killed_and_continued(name, place) for name in ("figure3", "figure4")}


def killed_and_continued(name, place):
    folder = place / name
    words = ["sweep", str(results.SWEEPS / f"{name}.toml"), "--dataset", str(place / "toy.csv")]
    words += ["--output", str(folder)]
    words += [word for key, value in TINY.items() for word in ("-p", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSAS_LAB_RUNS", str(place / f"{name}-runs"))
        command = [sys.executable, "-m", "gsas_lab", *words]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=files.ROOT, stdout=quiet, stderr=quiet) as sweep:
            while len(finished()) < 5:
                assert sweep.poll() is None
                time.sleep(0.02)
            sweep.kill()
        before = finished()
        assert not (folder / "results.csv").exists(), "the sweep ended before it was killed"
        with pytest.raises(InputError, match="holds no finished sweep"):
            results.load(folder)
        assert main(words) == 0
        after = finished()
    assert {run: after[run] for run in before} == before, "a finished run was trained anew"
    return folder


def finished():
    """Finished runs, and when they were written."""
    found = files.runs_folder().glob("*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def changed(folder, to, edit):
    """A copy of a sweep's folder whose sweep.json went through edit(record)."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("report.html"))
    record = json.loads((to / "sweep.json").read_text())
    edit(record)
    (to / "sweep.json").write_text(json.dumps(record))
    sweeps.seal(to)
    return to


def on_movielens(record):
    for run in record["runs"].values():
        run["settings"]["dataset"] = "ml-1m"


def page_of(folder):
    return BeautifulSoup(results.write_report(folder).read_text(encoding="utf-8"), "html.parser")


def section(page, heading):
    """The text of a page from a heading to the next."""
    found = page.find("h2", string=re.compile(heading))
    rest = iter(found.find_next_siblings())
    parts = []
    while (part := next(rest, None)) is not None and part.name != "h2":
        parts.append(part.get_text(" "))
    return " ".join(parts)


# --- what the sweeps ask for ----------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["known-truth", "ml-1m"])
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_the_papers_sweeps_are_its_runs_in_its_order(dataset, profile):
    asked = {
        name: sweeps.read(results.SWEEPS / f"{name}.toml", dataset=dataset, profile=profile)
        for name in ("figure3", "figure4", "table2", "table3")
    }
    for named in asked.values():
        assert len(set(named.values())) == len(named)
        for settings in named.values():
            assert settings.dataset == dataset
            if settings.model in ("sasrec", "bert4rec"):  # else some budgets are the same
                assert recipes.profile_of(settings) == profile
    three = [(s.model, s.loss, s.k, s.t) for s in asked["figure3"].values()]
    ts = [0, 0.25, 0.5, 0.75, 1]
    assert three == [("sasrec", "gbce", k, t) for k, t in product(KS, ts)]
    four = asked["figure4"].values()
    order = product(["sasrec", "bert4rec"], ["bce", "gbce", "sampled_softmax"], KS)
    assert [(s.model, s.loss, s.k) for s in four] == list(order)
    assert {s.t for s in four if s.loss == "gbce"} == {1.0}
    assert list(asked["table2"]) == list(paper.table_2().loc["MovieLens-1M"].index)
    assert list(asked["table3"]) == [*paper.table_3().loc["MovieLens-1M"].index, SHARED]
    assert asked["table3"]["SASRec"] == asked["table2"]["SASRec"]


def test_every_recipe_is_a_run_of_the_paper():
    asked = set()
    for path in results.SWEEPS.glob("*.toml"):
        asked |= set(sweeps.read(path, dataset="ml-1m", profile="paper").values())
    for name, recipe in recipes.RECIPES.items():
        assert recipes.paper(recipe(), "ml-1m") in asked, name


@pytest.mark.parametrize("dataset", ["known-truth", "ml-1m"])
def test_the_profile_of_a_recipe_can_be_told(dataset):
    for name, recipe in recipes.RECIPES.items():
        for profile, budget in recipes.PROFILES.items():
            told = recipes.profile_of(budget(recipe(), dataset))
            same = [p for p, b in recipes.PROFILES.items()
                    if b(recipe(), dataset) == budget(recipe(), dataset)]  # fmt: skip
            assert told == ("any" if name == "popularity" else same[0]), (name, profile)


def test_a_sweep_has_a_folder_of_its_own_for_each_choice():
    folder = sweeps.folder_of("figure3", lr=0.01, dataset="data/my.csv", profile="small")
    assert folder == files.ROOT / "outputs" / "figure3-my-small-lr=0.01"
    assert sweeps.folder_of("figure3") == files.ROOT / "outputs" / "figure3"
    others = [{"lr": 0.01}, {"lr": 0.02}, {"k": 8}, {"d": 8}]
    assert len({sweeps.folder_of("f", **over) for over in others}) == 4


# --- tables ---------------------------------------------------------------------------------------


def test_killed_and_given_again_the_command_completes_each_figure_in_order(figures):
    for name, size in (("figure3", 25), ("figure4", 30)):
        named = sweeps.read(results.SWEEPS / f"{name}.toml")
        found = results.load(figures[name])
        assert len(named) == size and list(found.table.index) == list(named)
        assert list(found.shown.index) == list(found.ranks) == list(named)
        assert found.table["k"].tolist() == [settings.k for settings in named.values()]
        assert found.table["t"].tolist() == [settings.t for settings in named.values()]


def test_every_number_follows_from_the_ranks(figures):
    found = results.load(figures["figure4"])
    for name, row in found.shown.iterrows():
        ranks = found.ranks[name]
        gains = [1 / np.log2(1 + rank) if rank <= 10 else 0 for rank in ranks.tolist()]
        assert found.per_user([name])[name] == pytest.approx(gains)
        assert row["NDCG@10"] == pytest.approx(np.mean(gains))
        assert row["Recall@10"] == pytest.approx(np.mean(ranks <= 10))
        assert row["Recall@1"] == pytest.approx(np.mean(ranks == 1))
        assert found.per_user([name], cutoff=1)[name].mean() == pytest.approx(row["Recall@1"])
        assert row["NDCG@10 low"] <= row["NDCG@10"] <= row["NDCG@10 high"]
    assert len(set(map(len, found.ranks.values()))) == 1 and found.shown["NDCG@10"].nunique() > 5


def test_the_grid_has_a_cell_for_every_run(figures):
    found = results.load(figures["figure3"])
    for what in ("NDCG@10", "Σp"):
        grid = found.grid(what)
        assert list(grid.index) == KS and list(grid.columns) == [0, 0.25, 0.5, 0.75, 1]
        for k, t in product(grid.index, grid.columns):
            assert grid.loc[k, t] == found.shown.loc[f"k = {k}, t = {t:g}", what]
    assert found.grid("Σp").loc[1, 0] > 10 * found.grid("Σp").loc[1, 1]
    assert list(found.grid(rows="t", columns="k").columns) == KS


def test_lines_over_k_are_those_of_figure_4(figures):
    found = results.load(figures["figure4"])
    lines = found.by_k()
    assert list(lines) == ["SASRec", "BERT4Rec"]
    for model, losses in lines.items():
        assert list(losses) == ["BCE", "gBCE", "sampled softmax"]
        for line in losses.values():
            assert list(line.index) == KS and list(line) == ["value", "low", "high"]
        names = [f"{model}, sampled softmax, k = {k}" for k in KS]
        shown = found.shown.loc[names, ["NDCG@10", "NDCG@10 low", "NDCG@10 high"]]
        assert losses["sampled softmax"].to_numpy().tolist() == shown.to_numpy().tolist()
    assert list(found.by_k("Recall@1")["SASRec"]["BCE"]) == ["value"]


def test_marks_are_those_of_a_paired_test_with_bonferroni(figures, monkeypatch):
    found = results.load(figures["figure3"])
    first, better, *_ = found.ranks
    monkeypatch.setitem(found.ranks, better, np.ones_like(found.ranks[first]))
    marks = found.marks(first)
    assert list(marks.index) == list(found.shown.index)
    assert marks[better] == "*" and marks[first] == ""
    scipy_stats = pytest.importorskip("scipy.stats")
    gains = found.per_user()
    for name in found.ranks.keys() - {first, better}:
        p = scipy_stats.ttest_rel(gains[name], gains[first]).pvalue if (
            gains[name] != gains[first]).any() else 1.0  # fmt: skip
        assert marks[name] == ("*" if 24 * p < 0.05 else "")


def test_what_a_system_does_not_have_is_blank(mixed):
    shown = results.load(mixed).shown
    assert shown.index[shown["k"].isna()].tolist() == ["Popularity", "BERT4Rec", "SASRec, softmax"]
    assert shown.index[shown["t"].notna()].tolist() == ["gSASRec"]
    assert shown["sampler"].isna().tolist() == shown["k"].isna().tolist()
    assert shown.index[shown["loss"].isna()].tolist() == ["Popularity"]
    assert shown.index[shown["Σp"].isna()].tolist() == ["MF-BPR"]
    assert "seed" not in shown


def test_a_failed_run_is_left_out_of_what_is_shown(mixed):
    found = results.load(mixed)
    assert found.table["state"].tolist() == ["done"] * 7 + ["failed"]
    assert list(found.shown.index) == [*TABLE_3, SHARED] == list(found.ranks)


def test_several_runs_of_one_place_are_told_and_not_averaged(figures, mixed):
    found = results.load(figures["figure4"])
    with pytest.raises(InputError, match="Several runs have k = 1, t = 0"):
        found.grid()
    with pytest.raises(InputError, match="Several runs of sasrec with gbce have the same k"):
        results.load(figures["figure3"]).by_k()
    with pytest.raises(InputError, match="No finished run is called 'SAS': Popularity, "):
        results.load(mixed).per_user(["SAS"])


def test_the_source_says_whence_a_number_comes(mixed, tmp_path, monkeypatch):
    found = results.load(mixed)
    commit, day = found.table["commit"].iloc[0], found.table["date"].iloc[0][:10]
    assert found.source == (
        f"Runs of this machine: 7 of 8 runs on {mixed.parent / 'toy.csv'}, profile own, "
        f"trained {day} at commit {commit}."
    )
    monkeypatch.setattr(results, "REFERENCE", mixed.parent)
    monkeypatch.chdir(mixed.parent)
    assert results.load("mixed").source.startswith("Committed evidence: 7 of 8 runs")
    text = (mixed / "results.csv").read_text()
    shutil.copytree(mixed, tmp_path / "dated")
    text = (
        text.replace(commit, "1e10000", 3).replace(commit, "1234567").replace(day, "2026-01-02", 1)
    )
    (tmp_path / "dated" / "results.csv").write_text(text)
    sweeps.seal(tmp_path / "dated")
    source = results.load(tmp_path / "dated").source
    assert source.endswith(f"trained 2026-01-02 to {day} at commit 1234567 and 1e10000.")


# --- reports --------------------------------------------------------------------------------------


def test_a_report_is_one_file_that_loads_nothing(figures, mixed):
    for folder, images in ((mixed, 0), (figures["figure3"], 1), (figures["figure4"], 2)):
        page = page_of(folder)
        text = str(page)
        assert "http:" not in text and "https:" not in text and "@import" not in text
        assert not page.find_all(["script", "link", "iframe"]) and "url(" not in text
        found = page.find_all("img")
        assert len(found) == images
        assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in found)
        assert all("NDCG@10" in image["alt"] for image in found)


def test_a_report_holds_all_that_made_its_numbers(mixed):
    page, found = page_of(mixed), results.load(mixed)
    assert found.source in page.get_text() and page.h1.get_text() == "mixed"
    told = section(page, "Results")
    for _, row in found.shown.iterrows():
        assert f"{row['NDCG@10']:.4f}" in told
        assert f"{row['NDCG@10 low']:.4f}–{row['NDCG@10 high']:.4f}" in told
    settings = section(page, "Settings")
    for setting in asdict(Settings()):
        assert setting in settings
    assert "4096" in settings and "shared-sequence" in settings  # of one run alone
    assert "order of the file: it has no times" in section(page, "Protocol")
    record = found.record["environment"]
    assert all(fact in section(page, "Environment") for fact in record.values())
    failed = section(page, "Failed")
    assert "too <many>" in failed and found.table["error"].iloc[-1] in failed, "told in full"


def test_a_report_tests_against_the_best_on_validation(mixed):
    found, told = results.load(mixed), section(page_of(mixed), "Against the best")
    best = found.shown["validation NDCG@10"].idxmax()
    assert best != found.shown["NDCG@10"].idxmax(), "test users would have chosen another"
    assert f"Against the best, {best}" in page_of(mixed).get_text()
    for name, row in found.shown.iterrows():
        if name != best:
            assert f"{row['NDCG@10'] - found.shown['NDCG@10'][best]:.4f}" in told


def test_the_papers_numbers_stand_beside_ours_on_its_data_alone(figures, mixed, tmp_path):
    assert "Beside the paper" not in page_of(mixed).get_text()
    told = section(page_of(changed(mixed, tmp_path / "table3", on_movielens)), "Beside")
    for number in paper.table_3().loc["MovieLens-1M"][["Recall@1", "NDCG@10"]].to_numpy().flat:
        assert f"{number:.4f}" in told
    assert "shared" not in told  # which the paper does not have
    four = changed(figures["figure4"], tmp_path / "figure4", on_movielens)
    told = section(page_of(four), "Beside")
    for row in paper.figure_4().itertuples():
        assert f"{row[4]:.4f}" in told or np.isnan(row[4])
        assert f"{row[5]:.4f}" in told or np.isnan(row[5])
    assert "BERT4Rec, gBCE, k = 4, t = 1" in told and "k = 64" not in told


def test_the_map_of_figure_3_has_the_papers_cells_on_its_data_alone(figures, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    three = changed(figures["figure3"], tmp_path / "figure3", on_movielens)
    for folder, quoted in ((three, 2), (figures["figure3"], 0)):
        (axes,) = results._figures(results.load(folder))
        cells = [text.get_text() for text in axes.texts]
        assert len(cells) == 25 and sum("\n(0.1" in cell for cell in cells) == quoted
        plt.close(axes.figure)


def test_a_report_fits_its_window(figures, mixed, tmp_path, chromium):
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    folders = [mixed, *figures.values(), changed(mixed, tmp_path / "paper", on_movielens)]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        for folder in folders:
            page.goto(results.write_report(folder).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            wide = "Array.from(document.querySelectorAll('.table'), t => t.scrollWidth > t.clientWidth)"
            assert not any(page.evaluate(wide)), "a table has to be scrolled"
            wide = "Array.from(document.images, i => i.naturalWidth > 700 && i.clientWidth > 500)"
            assert all(page.evaluate(wide))
        browser.close()


def test_a_sweep_over_seeds_or_data_sets_has_a_report_too(place, mixed, tmp_path):
    """Nothing there makes a map or a line, and users of two data sets are not compared."""
    named = sweeps.read(results.SWEEPS / "table3.toml", dataset=str(place / "toy.csv"), **TINY)
    one, two = named["SASRec"], replace(named["gSASRec"], t=0.5)
    seeds = {f"{s.name} {n}": replace(s, seed=n, k=4) for n in (1, 2) for s in (one, two)}
    sweeps.run(seeds, tmp_path / "seeds", show=lambda _: None)
    assert results.load(tmp_path / "seeds").shown["seed"].tolist() == [1, 1, 2, 2]
    assert "Against the best" in page_of(tmp_path / "seeds").get_text()

    def elsewhere(record):
        record["runs"]["SASRec"]["protocol"]["dataset"] = "other"
        record["runs"]["SASRec"]["settings"]["dataset"] = "other"

    other = changed(mixed, tmp_path / "other", elsewhere)
    assert "Against the best" not in page_of(other).get_text()
    assert "toy.csv and other, profile" in results.load(other).source


@pytest.fixture(scope="module")
def seeds(place):
    """A sweep of two systems with three seeds each, and one of a single seed."""
    named = sweeps.read(results.SWEEPS / "table3.toml", dataset=str(place / "toy.csv"), **TINY)
    named = {n: replace(named["gSASRec"], seed=n % 3, k=4, t=n // 3 / 2) for n in range(6)}
    named = {f"t = {s.t:g}, seed = {s.seed}": s for s in named.values()}
    named["once"] = replace(named["t = 0, seed = 1"], k=2)
    sweeps.run(named, place / "seeds", show=lambda _: None)
    return place / "seeds"


def test_runs_that_differ_in_seed_alone_are_one_row_with_its_spread(seeds):
    found = results.load(seeds)
    assert list(found.systems) == ["t = 0", "t = 0.5", "once"] == list(found.written.index)
    assert found.written["seeds"].tolist() == [3, 3, 1] and "seed" not in found.written
    for system, names in found.systems.items():
        values = found.shown.loc[names, "NDCG@10"]
        spread = f" ± {values.std(ddof=1):.4f}" if len(names) > 1 else ""
        assert found.written.loc[system, "NDCG@10"] == f"{values.mean():.4f}{spread}"
        users = np.mean([found.per_user()[name] for name in names], axis=0)
        low, high = metrics.bootstrap_interval(users)
        assert found.written.loc[system, "95 % interval"] == f"{low:.4f}–{high:.4f}"
    assert found.shown["seed"].tolist() == [0, 1, 2, 0, 1, 2, 1], "each run is still to be had"
    grid = found.grid()
    assert grid.loc[4, 0.5] == found.shown.loc[found.systems["t = 0.5"], "NDCG@10"].mean()
    assert grid.loc[2, 0] == found.shown.loc["once", "NDCG@10"]
    with pytest.raises(InputError, match="Several runs have t = 0.0, seed = 1"):
        found.grid(rows="t", columns="seed")


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    told = results._write(pd.DataFrame({"difference": [-0.00001], "relative": [-0.04]}))
    assert told.loc[0].tolist() == ["0.0000", "+0.0 %"]


@pytest.mark.parametrize("best", ["t = 0.5", "once"])
def test_systems_of_several_seeds_are_compared_over_users_and_over_seeds(seeds, best):
    found = results.load(seeds)
    by_system = found.over_seeds()
    found.table.loc[found.systems[best], "validation ndcg@10"] = 0.99
    page = BeautifulSoup(results._tests(found), "html.parser")
    heading = page.find("h2", string=f"Against the best, {best}")
    assert ("p_seeds" in page.get_text()) == (best != "once")
    rows = heading.find_next("tbody").find_all("tr")
    assert {row.th.get_text() for row in rows} == {*by_system} - {best}, "no row is its other seed"
    for row in rows:
        own, other = by_system[row.th.get_text()], by_system[best]
        cells = [cell.get_text() for cell in row.find_all("td")]
        assert f"{(own.mean(0) - other.mean(0)).mean():z.4f}" == cells[1]
        p = metrics.paired_test(own.mean(0), other.mean(0))[1]
        over = (
            metrics.compare_seeds(own, other)["p"]["seeds"]
            if 1 not in map(len, (own, other))
            else np.nan
        )
        told = [p, over, np.fmax(p, over)]
        told = ["" if np.isnan(each) else f"{each:.2g}" for each in told]
        assert cells[5:8] == told if best != "once" else cells[5] == told[2]


def test_a_star_needs_users_and_seeds(seeds):
    """Many users alone make any two trainings differ."""
    found = results.load(seeds)
    found.table.loc[found.systems["t = 0"], "validation ndcg@10"] = 0.99
    rng = np.random.default_rng(0)

    def starred(by_seed):
        for name in found.ranks:
            better = 0.3 * (name.startswith("t = 0,")) + by_seed * name.endswith("0")
            draws = rng.random(len(found.ranks[name]))
            found.ranks[name][:] = np.where(draws < 0.1 + better, 1, 50)
        marks = found.marks("t = 0, seed = 1")
        page = BeautifulSoup(results._tests(found), "html.parser")
        row = page.find("th", string="t = 0.5").parent
        assert row.find_all("td")[-1].get_text() == marks["t = 0.5, seed = 0"]
        assert (marks[found.systems["t = 0"]] == "").all(), "its other seeds are itself"
        assert marks[found.systems["t = 0.5"]].nunique() == 1 and list(marks.index) == [
            *found.ranks
        ]
        return marks["t = 0.5, seed = 0"]

    assert [starred(by_seed) for by_seed in (0.5, 0.0)] == ["", "*"]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["seed = 1", "seed = 2"], ""),
        (["k = 1, seed = 1, t = 0", "k = 1, seed = 12, t = 0"], "k = 1, t = 0"),
        (["gSASRec 1", "gSASRec 12"], "gSASRec"),
        (["mine (seed 1)", "mine (seed 2)"], "mine"),
        (["run1", "run2"], ""),
        (["a", "a, seed = 3"], "a"),
    ],
)
def test_a_system_has_what_its_seeds_names_have_in_common(names, common):
    assert results._common(names) == common


ODD = [
    "NA", "None", "null", "nan", "", "1", "1.0", "01", "True", "a,b", 'say "so"', "two\nlines", "cr\rlf",
    "win\r\n", " ", "é∞", "=1+1", "#x", "n\\a", "\t", "\x00", "N/A", "-inf", "1e5", "'", "x" * 2000,
]  # fmt: skip


def test_a_run_may_have_any_name(mixed, place, tmp_path):
    """What a table takes for a missing value, a number, a truth or a line's end."""
    settings = Settings(**results.load(mixed).record["runs"]["Popularity"]["settings"])
    named = {name: replace(settings, k=n + 1) for n, name in enumerate(ODD)}
    named["None "] = replace(settings, dataset="null")  # which fails
    sweeps.run(named, tmp_path / "odd", show=lambda _: None)
    found = results.load(tmp_path / "odd")
    assert list(found.table.index) == [*named] and list(found.ranks) == ODD
    assert list(found.shown.index) == ODD == list(found.written.index)
    assert found.table["k"].tolist() == [*range(1, len(ODD) + 1), 1]
    assert found.table["error"].notna().tolist() == [False] * len(ODD) + [True]
    page = page_of(tmp_path / "odd")
    assert 'say "so"' in page.get_text() and "null" in section(page, "Failed")


def test_where_every_run_failed_the_report_says_why(place, tmp_path, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text("loss = 'gbce'\n[grid]\nk = [500, 600]\n")
    words = [
        "sweep",
        str(grid),
        "--dataset",
        str(place / "toy.csv"),
        "--output",
        str(tmp_path / "s"),
    ]
    words += [word for key, value in TINY.items() for word in ("-p", f"{key}={value}")]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "gsas-lab: 2 of 2 runs failed: the same command tries them again."
    assert "failed: k = 600: k = 600 negatives per positive" in str(said)
    assert main(["report", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "s" / "report.html")
    page = page_of(tmp_path / "s")
    assert "0 of 2 runs on" in page.get_text() and "k from 1 to 299" in section(page, "Failed")


# --- mistakes -------------------------------------------------------------------------------------


def spoil(folder, what):
    if what == "no folder":
        return shutil.rmtree(folder)
    file, _, how = what.partition(": ")
    content = (folder / file).read_bytes()
    if how == "gone":
        return (folder / file).unlink()
    if how == "of another format":
        content = re.sub(rb'"format": *"\d+"', b'"format": "0"', content)
    else:
        replaced = {
            "cut": content[: len(content) // 2], "empty": b"", "noise": bytes(range(256)),
            "a list": b"[1]", "without runs": b"{}", "of other runs": content.replace(b"gsas", b"x"),
            "of one run less": b"\n".join(content.splitlines()[:-1]),
            "without columns": b"name,k\nSASRec,1\n",
            "of a setting unknown": content.replace(b'"k": ', b'"kk": '),
            "deep": content.replace(b'"k": 1', b'"k": ' + b"[" * 100_000, 1),
            "deep and whole": content.replace(b'"k": 1', b'"k": ' + b"[" * 900 + b"]" * 900, 1),
            "of half a character": content.replace(b'"protocol": {', b'"protocol": {"x": "\\ud800",'),
            "of nested facts": content.replace(b'"protocol": {', b'"protocol": {"x": {"y": 1},'),
            "without its ndcg": content.replace(b"ndcg@10", b"ndgc@10"),
            "without seeds": content.replace(b'"seed"', b'"sead"'),
            "of other k": content.replace(b",256,", b",255,"),
            "of other numbers": re.sub(rb",0\.\d+,0\.\d+,0\.\d+", b",0.5,0.5,0.5", content, count=1),
            "of settings as text": content.replace(b'"runs": {', b'"runs": {"x": "y", '),
        }  # fmt: skip
        content = replaced[how]
    return (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    "what",
    [
        "no folder", "results.csv: gone", "results.csv: empty", "results.csv: noise",
        "results.csv: of one run less", "results.csv: without columns", "results.csv: cut",
        "ranks.npz: gone", "ranks.npz: cut", "ranks.npz: noise", "sweep.json: gone",
        "sweep.json: cut", "sweep.json: a list", "sweep.json: without runs",
        "sweep.json: of settings as text", "sweep.json: deep", "sweep.json: deep and whole",
        "sweep.json: of half a character", "sweep.json: of nested facts", "results.csv: of other k",
        "sweep.json: of a setting unknown", "results.csv: without its ndcg",
        "results.csv: without seeds", "results.csv: of other numbers", "histories.csv: gone",
        "histories.csv: without columns", "sweep.json: of another format",
    ],
)  # fmt: skip
def test_a_folder_without_a_whole_sweep_is_refused_in_one_sentence(mixed, tmp_path, capsys, what):
    changed(mixed, tmp_path / "spoilt", lambda record: None)
    spoil(tmp_path / "spoilt", what)
    assert main(["report", str(tmp_path / "spoilt")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    if what != "no folder":  # as if it had been written so
        with suppress(InputError):
            sweeps.seal(tmp_path / "spoilt")
    assert main(["report", str(tmp_path / "spoilt")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    wanted = "comes from another version" if "format" in what else "holds no finished sweep"
    assert said.startswith(f"gsas-lab: {tmp_path / 'spoilt'} {wanted}")
    assert not (tmp_path / "spoilt" / "report.html").exists()


def edited(folder, name, old, new):
    content = (folder / name).read_bytes()
    assert re.search(old, content)
    (folder / name).write_bytes(re.sub(old, new, content, count=1))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results.csv", rb'"mean sum of p"', b'"mean sum of P"'),
        ("results.csv", rb"(\d),", b"\\g<1>0,"),  # a number that no rank proves wrong
        ("sweep.json", rb'"commit": "', b'"commit": "0'),
        ("histories.csv", rb"(\d),", b"\\g<1>0,"),
        ("ranks.npz", rb"\Z", b" "),
        ("results.parquet", rb"\Z", b" "),
        ("manifest.json", rb'"results.csv": ".', b'"results.csv": "x'),
    ],
)
def test_a_sweep_that_was_edited_is_told_and_one_of_before_is_read(mixed, tmp_path, name, old, new):
    folder = tmp_path / "edited"
    shutil.copytree(mixed, folder)
    edited(folder, name, old, new)
    with pytest.raises(InputError, match=f"{name} is not as (it was written|the sweep wrote it)"):
        results.load(folder)
    (folder / files.MANIFEST).unlink()
    with pytest.raises(InputError, match=r"holds no finished sweep \(it has no manifest.json\)"):
        results.load(folder)
    shutil.copytree(mixed, tmp_path / "before")
    (tmp_path / "before" / files.MANIFEST).unlink()
    edited(tmp_path / "before", "sweep.json", rb'"manifest": true,', b"")
    assert len(results.load(tmp_path / "before").ranks) == len(results.load(mixed).ranks)


COMMITTED = sorted(path.parent for path in results.REFERENCE.glob("*/*/sweep.json"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda each: f"{each.parent.name}/{each.name}")
def test_every_committed_sweep_is_sealed_and_stands(folder, tmp_path):
    sealed = {*files.read_manifest(folder)["files"]}
    assert sealed == {"sweep.json", "ranks.npz", *(path.name for path in folder.glob("*.csv"))}
    assert results.load(folder).ranks
    shutil.copytree(folder, tmp_path / "edited")
    name = "curves.csv" if "curves.csv" in sealed else "results.csv"
    edited(tmp_path / "edited", name, rb"(\d),", b"\\g<1>0,")
    with pytest.raises(InputError, match=f"{name} is not as the sweep wrote it"):
        results.load(tmp_path / "edited")


def test_a_sweep_without_its_parquet_form_is_whole(mixed, tmp_path):
    shutil.copytree(mixed, tmp_path / "copy")
    (tmp_path / "copy" / "results.parquet").unlink()
    assert results.load(tmp_path / "copy").shown.equals(results.load(mixed).shown)


def test_results_of_an_earlier_grid_are_not_taken_for_those_of_a_later_one(mixed, tmp_path):
    """A sweep that is started anew in its folder with other settings, and killed."""

    def retold(record):
        record["runs"]["SASRec"]["run"] = "sasrec-bce-0123456789ab"

    with pytest.raises(InputError, match="results.csv is of other runs than sweep.json"):
        results.load(changed(mixed, tmp_path / "later", retold))


def test_a_sweep_of_the_paper_is_trained_where_it_was_not(place, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "folder_of", lambda name, **_: tmp_path / name)
    monkeypatch.setattr(sweeps, "_screen", lambda: lambda _: None)
    found = results.of_paper("table3", str(place / "toy.csv"), "small", **TINY)
    pd.testing.assert_frame_equal(found.shown, results.load(mixed).shown)  # seconds included


def test_the_evidence_is_read_and_nothing_else(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "REFERENCE", tmp_path)
    shutil.copytree(mixed, tmp_path / "toy" / "table3")
    assert "Committed evidence" in results.of_paper("table3", "toy").source
    for name, dataset, over, message in (
        ("figure5", "toy", {}, "Sweep 'figure5' is unknown: choose one of .*figure3, figure4, "),
        (
            "figure3",
            "toy",
            {"profile": "reference"},
            "no evidence of figure3 on toy: choose profile 'small' to train",
        ),
        (
            "table3",
            "toy",
            {"profile": "reference", "k": 3, "d": 4},
            "The evidence is as it is: to set k, d, train anew",
        ),
        ("table3", "toy", {"profile": "large"}, "profile = 'large': choose one of small, quick"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            results.of_paper(name, dataset, **over)
        assert "\n" not in str(caught.value)
