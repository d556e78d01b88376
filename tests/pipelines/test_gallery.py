"""The gallery of real runs and shards: what it holds, and what a browser shows of it."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.report import add_run, dumped, make_store, predicted
from support.tuning import SIZE, make_shards
from support.video import write_video

from pipelines import gallery
from pipelines.reports.gallery import video_files
from pipelines.reports.queries import FRAMES, PlayableFile, chosen
from pipelines.track import TrackedRun

OURS, THEIRS = [1, 1, 3, 60], [1, 9, 1, 60]  # ranks: both, fixed by ours, broken by ours, neither


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two runs on four captions, shards of seven videos, and their page."""
    folder = tmp_path_factory.mktemp("gallery")
    make_shards(folder / "shards", videos=7)
    store = make_store(folder)
    where = {"shards": str(folder / "shards")}
    for method, ranks in [("vop_p", OURS), ("full", THEIRS)]:
        add_run(store, method, predictions=predicted(ranks), tags=where)
    add_run(store, "vop", tags=where)
    assert run(folder, "vop_p", "full") == 0
    return folder, store


def run(folder, *words: str) -> int:
    uri = f"sqlite:///{folder}/mlflow.db"
    return gallery.main(
        ["msrvtt_9k", *words, "--uri", uri, "--out", str(folder / f"{'_'.join(words[:2])}.html")]
    )


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_each_caption_with_its_ranks_videos_and_scores(world):
    data = data_of((world[0] / "vop_p_full.html").read_text())
    assert [query["caption"] for query in data["queries"]] == [f"a red ball {i}" for i in range(4)]
    assert [[r["rank"] for r in query["results"]] for query in data["queries"]] == [
        [1, 1],
        [1, 9],
        [3, 1],
        [60, 60],
    ]
    third = data["queries"][2]
    names = [data["videos"][place]["id"] for place in third["results"][0]["top"]]
    assert names == ["v000", "v001", "v002", "v003", "v004"]
    assert data["videos"][third["right"]]["id"] == "v002"
    assert third["results"][0]["scores"] == [0.9, 0.8, 0.7, 0.6, 0.5]


def test_a_strip_is_frames_of_that_video_evenly_over_its_time(world, tmp_path):
    data = data_of((world[0] / "vop_p_full.html").read_text())
    video = next(video for video in data["videos"] if video["id"] == "v003")
    raw = base64.b64decode(video["image"].removeprefix("data:image/jpeg;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(float)
    assert pixels.shape == (SIZE, FRAMES * SIZE, 3)
    frames = make_shards(tmp_path, videos=7).frames("v003", [0, 2, 3, 5]).astype(float)
    wanted = np.concatenate(list(frames), axis=1)
    shuffled = np.concatenate(list(frames[::-1]), axis=1)
    assert (
        np.abs(pixels - wanted).mean() < 0.8 * np.abs(pixels - shuffled).mean()
    )  # noise in JPEG, yet its own


LAST = "a red ball 3"
ALL = "at('outcome').value = 'all'"


def shown(folder, tmp_path, choose: str, page: str = "vop_p_full.html") -> list[str]:
    """The captions that a browser shows after `choose` was done."""
    script = f"<script>{choose}; document.querySelector('form').dispatchEvent(new Event('input'));</script>"
    changed = tmp_path / "page.html"
    changed.write_text((folder / page).read_text().replace("</body>", script + "</body>"))
    return re.findall(r"<article.*?<h2>(.*?)</h2>", dumped(changed), re.S)


@pytest.mark.parametrize(
    ("choose", "captions"),
    [
        ("at('outcome').selectedIndex = 0", ["a red ball 1"]),  # fixed
        ("at('outcome').selectedIndex = 1; at('low').value = 2", ["a red ball 2"]),  # broken
        (
            f"{ALL}; at('low').value = 3; at('high').value = 60; at('words').value = '3  BALL'",
            ["a red ball 3"],
        ),
        (f"{ALL}; at('words').value = 'ball green'", []),
    ],
)
def test_a_browser_shows_the_captions_that_are_asked_for(world, tmp_path, choose, captions):
    assert shown(world[0], tmp_path, choose) == captions


def test_what_is_chosen_stands_in_the_address_and_a_link_opens_it(world, tmp_path):
    name = "document.title = decodeURIComponent(location.hash)"
    choose = (
        f"at('outcome').value = 'both'; at('words').value = 'ball red'; setTimeout(() => {{ {name} }}, 0)"
    )
    assert shown(world[0], tmp_path, choose) == ["a red ball 0"]
    assert "<title>#show=both&amp;from=1&amp;words=ball+red</title>" in dumped(tmp_path / "page.html")
    page = dumped(world[0] / "vop_p_full.html", fragment="show=neither&words=3+red")
    assert re.findall(r"<article.*?<h2>(.*?)</h2>", page, re.S) == ["a red ball 3"]


def test_an_empty_result_says_so_and_leads_back(world, tmp_path):
    page = dumped(world[0] / "vop_p_full.html", fragment="show=fixed&words=green")
    assert "No caption is like that." in page
    assert "0 of 4 captions; page 1 of 1" in page
    press = "at('outcome').value = 'all'; at('words').value = 'green'; setTimeout(() =>"
    press += " document.querySelector('#queries button').click(), 0)"
    shown(world[0], tmp_path, press)
    assert dumped(tmp_path / "page.html").count("<article") == 4


def test_two_runs_open_on_what_one_fixed_and_labels_are_short(world):
    page = dumped(world[0] / "vop_p_full.html")
    assert re.findall(r"<article.*?<h2>(.*?)</h2>", page, re.S) == ["a red ball 1"]
    labels = re.findall(r"<option[^>]*>(.*?)</option>", page)
    assert labels[:3] == ["fixed by vop_p (1)", "broken by vop_p (1)", "right with both (1)"]
    assert max(map(len, labels)) < 30


def test_a_video_plays_from_its_moment_and_only_from_a_file_of_the_data_set(tmp_path):
    path = tmp_path / "a b#1.mp4"
    path.write_bytes(b"x")
    assert PlayableFile(str(path), 2.5, 7.0).address == f"file://{tmp_path}/a%20b%231.mp4#t=2.5,7"
    assert PlayableFile(str(path), 2.5).address == f"file://{tmp_path}/a%20b%231.mp4#t=2.5"
    assert PlayableFile(str(path)).address == f"file://{tmp_path}/a%20b%231.mp4"
    assert PlayableFile(str(tmp_path / "none.mp4")).address is None
    assert PlayableFile("s3://bucket/a.mp4").address is None


def test_the_files_of_a_run_are_those_its_settings_name(tmp_path):
    write_video(tmp_path / "v000.mp4", 5)
    (tmp_path / "captions.jsonl").write_text(
        '{"split": "test", "video": "v000.mp4", "captions": ["a"], "start": 1, "end": 2}\n'
    )
    run = TrackedRun(
        "1", "vop", "FINISHED", 0.0, {}, {"data.dataset": "folder", "data.root": str(tmp_path)}, {}
    )
    (file,) = video_files(run).values()
    assert file == PlayableFile(str(tmp_path / "v000.mp4"), 1.0, 2.0)
    assert video_files(replace(run, params={"data.dataset": "folder", "data.root": "/nowhere"})) == {}


def test_the_right_video_is_marked_also_where_it_is_not_among_the_five(world):
    page = dumped(world[0] / "vop_p_full.html", fragment="show=all")
    first, *_, last = re.findall(r"<article.*?</article>", page, re.S)
    assert first.count("✓ right") == last.count("✓ right") == 2
    assert re.search(r'<li class="right "><img src="data:image/jpeg[^>]*alt="frames of v000"', first)
    assert 'class="right apart"' in last
    assert "right video at rank 60" in last


def test_keys_go_from_caption_to_caption(world, tmp_path):
    pressed = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    name = "document.title = document.activeElement.querySelector('h2').textContent"
    page = (world[0] / "vop_p_full.html").read_text()
    script = f"<script>show({{show: 'all'}}); for (const key of 'jjk') {pressed}; {name}</script>"
    (tmp_path / "page.html").write_text(page.replace("</body>", script + "</body>"))
    assert "<title>a red ball 0</title>" in dumped(tmp_path / "page.html")


def test_the_page_asks_nothing_of_the_network_and_is_kept_with_the_run(world):
    folder, store = world
    page = (folder / "vop_p_full.html").read_text()
    assert "http" not in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    (run_id,) = [
        r.info.run_id for r in store.client.search_runs([store.experiment_id], "tags.method = 'vop_p'")
    ]
    assert "vop_p_full.html" in {item.path for item in store.client.list_artifacts(run_id)}


def test_of_many_captions_those_that_differ_stay_and_the_choice_is_repeatable():
    ours, theirs = ([{"rank": rank} for rank in ranks] for ranks in ([1] * 100, [1] * 40 + [2] + [1] * 59))
    kept = chosen([ours, theirs], 10, seed=0)
    assert 40 in kept
    assert len(kept) == 10
    assert kept == sorted(set(kept)) == chosen([ours, theirs], 10, seed=0)
    assert kept != chosen([ours, theirs], 10, seed=1)


def test_without_shards_the_page_goes_without_pictures(world, capsys):
    assert run(world[0], "full", "--shards", "/nowhere") == 0
    assert "no shards in /nowhere; name their folder with --shards" in capsys.readouterr().err
    data = data_of((world[0] / "full_--shards.html").read_text())
    assert {video["why"] for video in data["videos"]} == {"the shards are gone"}


def refused(world, capsys, *words: str) -> str:
    assert run(world[0], *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_runs_that_are_not_there_or_have_no_predictions_are_refused_in_one_line(world, capsys):
    line = refused(world, capsys, "lora")
    assert "no finished run 'lora'" in line
    assert "vop_p seed 0" in line
    assert "has no predictions.parquet" in refused(world, capsys, "vop")


def test_runs_on_other_captions_are_not_compared(world, capsys):
    folder, store = world
    add_run(store, "bias", predictions=predicted([1, 2]), tags={"shards": str(folder / "shards")})
    assert "not measured on the same captions" in refused(world, capsys, "vop_p", "bias")
