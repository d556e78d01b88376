"""The report of a real MLflow store: numbers by hand, pages in a real browser, and stores with flaws."""

import csv
import io
import re
import shutil
import sqlite3
import statistics
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from support.report import add_run, dumped, make_store, predicted

from pipelines import report, track
from pipelines.reports.document import write_report
from pipelines.reports.page import TEMPLATES
from pipelines.reports.published import beside, published
from pipelines.track import TrackedRun
from vopcore.methods import METHODS

METHODS_14 = list(METHODS)[:14]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Fourteen methods on MSR-VTT, two on DiDeMo, and runs that are of no use; the report on both."""
    folder = tmp_path_factory.mktemp("report")
    store = make_store(folder)
    for place, method in enumerate(METHODS_14):
        predictions = predicted([1, 2, 7, 60]) if method in ("full", "vop_p") else None
        add_run(
            store,
            method,
            recall=30.0 + place,
            trainable=0 if place == 0 else 10.0**place,
            predictions=predictions,
        )
    add_run(store, "vop_p", seed=1, recall=42.0)
    add_run(store, "vop_p", seed=2, recall=45.0)
    add_run(store, "vop", seed=5, status="FAILED", recall=None)
    add_run(store, "vop_c", seed=5, status="RUNNING", recall=10.0)
    add_run(store, "bias", seed=5, recall=None)
    other = track.open_store(store.uri, "didemo", folder)
    add_run(other, "full", recall=41.0, dataset="didemo")
    add_run(other, "vop", recall=39.5, dataset="didemo")
    done = report.main(["msrvtt_9k", "didemo", "--uri", store.uri, "--out", str(folder / "out")])
    assert done == 0
    return folder, store


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "out/report.csv").open(newline="") as file:
        return {(row["dataset"], row["method"]): row for row in csv.DictReader(file)}


def test_seeds_are_taken_together_as_mean_deviation_and_interval(world):
    row = rows(world[0])["msrvtt_9k", "vop_p"]
    seeds = [30.0 + METHODS_14.index("vop_p"), 42.0, 45.0]
    std = statistics.stdev(seeds)
    assert row["seeds"] == "0 1 2"
    assert float(row["t2v/R1 mean"]) == pytest.approx(statistics.mean(seeds))
    assert float(row["t2v/R1 std"]) == pytest.approx(std)
    half = (
        (4.302653 * std / 3**0.5) ** 2 + 3**2
    ) ** 0.5  # t of 2 degrees of freedom, from a table; bootstrap
    assert float(row["t2v/R1 low"]) == pytest.approx(statistics.mean(seeds) - half, abs=1e-4)
    assert float(row["t2v/R1 high"]) == pytest.approx(statistics.mean(seeds) + half, abs=1e-4)


def test_one_seed_has_its_own_interval_and_no_deviation(world):
    row = rows(world[0])["didemo", "vop"]
    assert (row["t2v/R1 std"], row["t2v/R1 low"], row["t2v/R1 high"]) == ("", "36.5", "42.5")


def test_published_numbers_stand_beside_ours_with_their_paper(world):
    full = rows(world[0])["msrvtt_9k", "full"]
    assert (full["t2v/R1 vop_paper"], full["t2v/R1 cma_paper"]) == ("41.7", "43.1")
    text = (world[0] / "out/report.md").read_text()
    assert re.search(
        r"\| full \| 31\.0 ?[≈★]? \| 28\.0–34\.0 \| 41\.7 VoP, 43\.1 CMA \|.*\| 10 \| .*\| 1 \|\n", text
    )
    assert "| vop | 39.5 ≈ (38.2 VoP) | 37.0 (39.6 VoP) |" in text


def test_methods_stand_in_their_own_order_with_what_they_cost(world):
    text = (world[0] / "out/report.md").read_text()
    table = text.split("### msrvtt_9k, text to video")[1].split("###")[0]
    assert table.strip().splitlines()[0].startswith("| method | R@1 | 95% | published | R@5 |")
    assert re.findall(r"^\| (\w+) \| \d", table, re.M) == METHODS_14
    assert re.search(
        r"\| vop \| 37\.0 \|.*\| 10,000,000 \| 1\.5 \| 1 \|", table
    )  # 90 seconds are 1.5 minutes


def test_the_page_begins_with_who_won_by_how_much_and_how_sure_that_is(world):
    text = (world[0] / "out/report.md").read_text()
    best = METHODS_14[-1]
    assert text.startswith(
        "On didemo, full puts the right video first for 41.0% of the captions (95% interval 38.0 to 44.0)"
    )
    assert f"On msrvtt_9k, {best} puts the right video first for 43.0% of the captions" in text
    assert "Full fine-tuning finds 12.0 points less with 10 times" not in text  # it is 10 parameters here
    page = (world[0] / "out/report.html").read_text()
    section = page.split('<h2 id="section-2">didemo</h2>')[1]
    assert section.index('class="verdict"') < section.index("<img") < section.index("<table")
    assert "is too close to call" in section.split("</p>")[0]


def test_the_best_row_and_those_tied_with_it_are_marked(tmp_path):
    store = make_store(tmp_path)
    hits = [1.0] * 60 + [9.0] * 40
    add_run(store, "vop", recall=60.0, predictions=predicted(hits))
    add_run(store, "full", recall=59.0, predictions=predicted([9.0, *hits[1:]]))
    add_run(store, "bias", recall=20.0, predictions=predicted([9.0] * 80 + [1.0] * 20))
    write_report([store], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "| vop | 60.0 ★ |" in text
    assert "| full | 59.0 ≈ |" in text
    assert "| bias | 20.0 |" in text
    page = (tmp_path / "out/report.html").read_text()
    assert re.findall(r'<tr class="(\w+)"><th scope="row">(\w+)', page) == [("tied", "full"), ("best", "vop")]


HOSTILE = "=cmd|'/c calc'!A1 $x_1$ <b>&\"team/own"


def test_what_is_found_of_other_data_is_drawn_less_what_the_frozen_clip_finds(tmp_path):
    store = make_store(tmp_path)
    add_run(store, "zero_shot", transfers={"msvd": predicted([1, 1, 9, 9])})
    add_run(store, "vop", transfers={"msvd": predicted([1, 1, 1, 9])})
    add_run(store, "full", transfers={"msvd": predicted([9, 9, 9, 1])})
    assert report.main(["msrvtt_9k", "--uri", store.uri, "--out", str(tmp_path / "out")]) == 0

    text = (tmp_path / "out/report.md").read_text()
    table = text.split("### Tuned on, tested on")[1]
    assert re.search(r"^\| zero_shot \| msrvtt_9k \| 50\.0 \|$", table, re.M)
    assert re.search(r"^\| vop \| msrvtt_9k \| \+25\.0 \(-\d+\.\d to \+\d+\.\d\) \|$", table, re.M)
    assert re.search(r"^\| full \| msrvtt_9k \| -25\.0 \(", table, re.M)
    assert (tmp_path / "out/plots/transfer.svg").is_file()
    assert "vop: msrvtt_9k on msvd +25.0" in dumped(tmp_path / "out/report.html")


def test_a_name_from_anywhere_harms_no_file_no_plot_and_no_spreadsheet(tmp_path):
    store = make_store(tmp_path, HOSTILE)
    add_run(store, "vop", dataset="folder", params={"name": HOSTILE, "train.lr": "0.1"}, tags={"gpu": "$"})
    add_run(store, "vop", recall=30.0, dataset="folder", params={"name": HOSTILE, "train.lr": "$0.2^"})
    files = write_report([store], tmp_path / "out")
    assert {file.parent.name for file in files} == {"out", "plots"}
    with (tmp_path / "out/report.csv").open(newline="") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {f"'{HOSTILE}"}
    page = (tmp_path / "out/report.html").read_text()
    assert "<b>" not in page.split("</h1>")[0].split("<h1>")[1]


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme):
    style = (TEMPLATES / "base.html").read_text()
    light, dark = re.findall(r":root \{([^}]*--[^}]*)\}", style)
    colours = dict(re.findall(r"--(\w+): (#\w+)", light))
    if theme == "dark":
        colours |= dict(re.findall(r"--(\w+): (#\w+)", dark))
    for word in ("ink", "soft", "accent", "right", "wrong"):
        for behind in ("paper", "wash"):
            bright, dim = sorted((luminance(colours[word]), luminance(colours[behind])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (word, behind)


def test_a_page_is_no_wider_than_a_phone_and_its_tables_scroll(world, tmp_path):
    page = (world[0] / "out/report.html").read_text()
    measure = """<script>
      const wide = [...document.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth);
      document.title = [document.documentElement.scrollWidth, innerWidth, wide.every(Boolean)].join(" ");
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", measure + "</body>"))
    title = re.search(r"<title>(.*?)</title>", dumped(tmp_path / "page.html", width=500))[1]
    scroll_width, inner_width, is_wide = title.split()
    assert int(scroll_width) <= int(inner_width)
    assert is_wide == "true"


def test_paper_is_white_also_where_the_screen_is_dark(world):
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page(color_scheme="dark")
        page.goto((world[0] / "out/report.html").as_uri())
        grounds = {}
        for media in ("screen", "print"):
            page.emulate_media(media=media)
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                grounds[media] = picture.convert("L").getpixel((2, 300))
        chromium.close()
    assert grounds["print"] == 255
    assert grounds["screen"] < 64


def test_latex_holds_the_same_table_with_its_special_characters_escaped(world):
    text = (world[0] / "out/report.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 5
    assert re.search(r"^vop\\_p & .* & 3 \\\\$", text, re.M)
    assert r" $\pm$ " in text
    assert r" $\star$ & " in text
    assert not re.search(r"(?<!\\)[_%](?!.*text to)", re.sub(r"^%.*$", "", text, flags=re.M))


def test_runs_that_cannot_be_used_are_listed_with_the_reason(world):
    page = (world[0] / "out/report.html").read_text()
    left = page.split("Not in the tables</h2>")[1]
    assert re.search(r"vop seed 5 [\d-]+</th><td>failed: out of memory", left)
    assert re.search(r"vop_c seed 5 [\d-]+</th><td>not finished", left)
    assert re.search(r"bias seed 5 [\d-]+</th><td>no t2v/R1 was measured", left)


def test_the_page_asks_nothing_of_the_network_and_names_every_picture(world):
    page = (world[0] / "out/report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(" not in page
    assert page.count("<img ") == 8  # gain; recall, parameters and loss of two; ranks where there are any
    assert all('alt="' in image for image in re.findall(r"<img [^>]*>", page))


def test_plots_show_parameters_on_a_log_axis_and_ranks_in_their_bins(world):
    plots = {path.name for path in (world[0] / "out/plots").iterdir()}
    assert plots == {
        "gain_over_full.svg",
        "msrvtt_9k_recall.svg",
        "didemo_recall.svg",
        "msrvtt_9k_parameters.svg",
        "msrvtt_9k_train_loss.svg",
        "msrvtt_9k_ranks.svg",
        "didemo_parameters.svg",
        "didemo_train_loss.svg",
    }


def test_the_numbers_on_a_log_axis_are_plain_text(world):
    """Matplotlib draws text as outlines and leaves the text itself in a comment before them."""
    for path in (world[0] / "out/plots").iterdir():
        texts = re.findall(r"<!-- (.+?) -->", path.read_text())
        assert not any("$" in text for text in texts), path
    parameters = (world[0] / "out/plots/msrvtt_9k_parameters.svg").read_text()
    assert "<!-- 100k -->" in parameters


def test_the_page_sorts_by_a_column_in_a_real_browser(world, tmp_path):
    page = (world[0] / "out/report.html").read_text()
    press = """<script>
      const table = document.querySelectorAll("table.sortable")[1];
      [...table.querySelectorAll("thead button")].find(head => head.textContent === "R@1").click();
      document.title = [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join(" ");
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", press + "</body>"))
    assert "<title>vop full</title>" in dumped(tmp_path / "page.html")  # DiDeMo's: 39.5 before 41.0


def test_the_report_is_an_artifact_of_a_run_that_the_next_report_leaves_out(world, tmp_path):
    _, store = world
    assert report.main(["msrvtt_9k", "--uri", store.uri, "--out", str(tmp_path)]) == 0
    (run,) = [run for run in track.runs(store) if run.tags.get("kind") == "report"]
    names = {item.path for item in store.client.list_artifacts(run.id)}
    assert names == {"report.html", "report.md", "report.csv", "report.tex", "plots"}
    assert "report" not in (tmp_path / "report.md").read_text()


def test_the_same_method_with_other_settings_is_a_row_of_its_own(tmp_path):
    store = make_store(tmp_path)
    add_run(store, "vop", recall=10.0, params={"train.lr": "0.1", "clip.words": "77"})
    add_run(store, "vop", recall=20.0, params={"train.lr": "0.2", "clip.words": "77", "machine": "other"})
    write_report([store], tmp_path / "out")
    assert {method for _, method in rows(tmp_path)} == {"vop (train.lr 0.1)", "vop (train.lr 0.2)"}


def refused(capsys, *argv: str) -> str:
    assert report.main(list(argv)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_read_is_refused_in_one_line(world, tmp_path, capsys):
    _, store = world
    line = refused(capsys, "msvd", "--uri", store.uri)
    assert "no experiment 'msvd'" in line
    assert "didemo, msrvtt_9k" in line
    assert "is missing; name yours with --uri" in refused(
        capsys, "msvd", "--uri", f"sqlite:///{tmp_path}/none.db"
    )
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "words.db").write_text("not a database " * 100)
    assert "file is not a database" in refused(capsys, "msvd", "--uri", f"sqlite:///{tmp_path}/words.db")
    assert "Connection refused" in refused(capsys, "msvd", "--uri", "http://127.0.0.1:9")


def test_a_database_of_an_older_mlflow_is_refused_with_the_command_that_upgrades_it(world, tmp_path, capsys):
    folder, _ = world
    shutil.copy(folder / "mlflow.db", tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
    line = refused(capsys, "msrvtt_9k", "--uri", f"sqlite:///{tmp_path}/old.db")
    assert f"mlflow db upgrade sqlite:///{tmp_path}/old.db" in line


def test_an_experiment_without_finished_runs_says_what_its_runs_are(tmp_path, capsys):
    store = make_store(tmp_path)
    assert "there are no runs" in refused(capsys, "msrvtt_9k", "--uri", store.uri)
    add_run(store, "vop", status="FAILED", recall=None)
    line = refused(capsys, "msrvtt_9k", "--uri", store.uri)
    assert re.search(r"vop seed 0 [\d-]+: failed: out of memory", line)


def test_a_lost_artifact_store_costs_only_the_rank_histogram(tmp_path, capsys):
    store = make_store(tmp_path)
    add_run(store, "vop", predictions=predicted([1, 3]))
    shutil.rmtree(tmp_path / "mlartifacts")
    (tmp_path / "mlartifacts").write_text("a file where the folder was")
    assert report.main(["msrvtt_9k", "--uri", store.uri, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "is left out of the rank histogram" in said
    assert "not logged" in said
    assert re.search(r"\| vop \| 40\.0 ★ \|.*\| 100,000 \|", (tmp_path / "out/report.md").read_text())


def experiment(method: str, dataset: str = "msrvtt_9k", metrics: dict | None = None, **params) -> TrackedRun:
    named = {name.replace("__", "."): str(value) for name, value in params.items()}
    tags = {"dataset": dataset, "method": method, "split": "test", "backbone": "ViT-B-32-quickgelu"}
    return TrackedRun("1", method, "FINISHED", 0.0, tags, named, metrics or {})


QUERY_AWARE = {"method__pooling": "query_aware"}
TWENTY = {"method__text_prompts": 20, "method__vision_prompts": 20}


@pytest.mark.parametrize(
    ("run", "numbers"),
    [
        (experiment("full", method__pooling="mean"), [("VoP", 41.7), ("CMA", 43.1)]),
        (experiment("full", **QUERY_AWARE), [("CMA", 44.8)]),
        # CLIP4Clip's own runs, which it pooled by the mean: as its paper prints them
        (experiment("full", "msvd", method__pooling="mean"), [("CMA", 46.2)]),
        (experiment("full", "didemo", video__frames=64), [("CMA", 43.4)]),
        (experiment("full", "msvd", **QUERY_AWARE), []),
        (experiment("full", "didemo", video__frames=64, **QUERY_AWARE), []),
        (experiment("vop", method__pooling="mean"), [("VoP", 39.6)]),
        (
            experiment("vop", **TWENTY, **QUERY_AWARE),
            [("CMA", 42.6)],
        ),
        (experiment("vop", **QUERY_AWARE), []),
        (experiment("vop", method__vision_layers=12, method__text_layers=12), [("VoP", 39.6)]),
        (experiment("vop", method__vision_prompts=0), [("VoP", 36.3)]),
        (experiment("vop", method__vision_prompts=7), []),
        (experiment("vop_f", method__spatial_layers=6), [("VoP", 41.9)]),
        (experiment("coop", **QUERY_AWARE), []),
        (experiment("coop", method__prompts=4, **QUERY_AWARE), [("CMA", 38.6)]),
        (experiment("vop", video__frames=8), []),
        (experiment("vop", clip__model="ViT-L-14"), []),
        (experiment("vop", clip__pretrained="laion2b_s34b_b79k"), []),
        (experiment("vop", clip__pretrained="/weights/ViT-B-32.pt"), [("VoP", 39.6)]),
        (experiment("vop", "msrvtt_7k"), [("VoP", 39.7)]),
        (experiment("vop", method__merge="2"), []),
        (experiment("vop", train__distill__teacher="runs:/a"), []),
        (experiment("dgl"), [("STOP", 44.7)]),
        (experiment("dgl", method__space="transformer"), [("STOP", 45.8)]),
        (experiment("vop", "msrvtt_full"), []),
        (experiment("vop", metrics={"queries/expected": 900}), []),
        (experiment("vop", metrics={"queries/expected": 1000}), [("VoP", 39.6)]),
    ],
)
def test_a_published_number_stands_beside_the_same_experiment_alone(run, numbers):
    assert [(row.paper, row.numbers["R1"]) for row in beside(run, "t2v")] == numbers


def test_every_published_row_is_a_percentage_of_a_known_paper():
    assert len(published()) == 220
    whole = [row for row in published() if "R5" in row.numbers]
    assert len(whole) == 183
    assert all(0 < row.numbers["R1"] < row.numbers["R5"] < row.numbers["R10"] < 100 for row in whole)
    assert all(0 < row.numbers["R1"] < 100 for row in published())
    vop = next(
        row for row in published() if (row.dataset, row.method, row.direction) == ("lsmdc", "vop_fc", "t2v")
    )
    assert (vop.numbers["R1"], vop.trainable, vop.paper) == (21.1, 14.1e6, "VoP")
