"""Tars as video2dataset writes them, made here: in, out again, and what is wrong with some."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.tuning import make_shards
from support.video import write_video

from pipelines import export
from vopcore.datasets import ANNOTATIONS, DATASETS, DatasetError, VideosFolder, problems
from vopcore.shards.export import export_webdataset
from vopcore.video import decode


def add(archive: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.type = kind
    archive.addfile(member, io.BytesIO(data))


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for ending, data in files.items():
                add(archive, f"{key}.{ending}", data)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 12).read_bytes()


def test_a_tar_of_video2dataset_becomes_videos_that_decode_with_their_captions(tmp_path, video):
    write_tar(
        tmp_path / "train/00000.tar",
        {
            "00000_000": {"mp4": video, "txt": b"a dog runs\n", "json": b'{"fps": 25}'},
            "00000_001": {"json": b'{"captions": ["one", "two"]}', "mp4": video},
        },
    )
    write_tar(tmp_path / "test-00000.tar", {"7": {"mp4": video, "json": b'{"caption": "a cat"}'}})
    table = DATASETS["webdataset"](tmp_path, tmp_path)
    rows = [(row["split"], row["video"], row["caption"]) for row in table.to_pylist()]
    assert rows == [
        ("test", "test-00000/7", "a cat"),
        ("train", "train/00000/00000_000", "a dog runs"),
        ("train", "train/00000/00000_001", "one"),
        ("train", "train/00000/00000_001", "two"),
    ]
    path = Path(table["path"][0].as_py())
    assert path.read_bytes() == video
    assert len(decode(str(path), count=4, size=32).pixels) == 4

    before = path.stat().st_mtime_ns
    assert DATASETS["webdataset"](tmp_path, tmp_path).equals(table)
    assert path.stat().st_mtime_ns == before  # unpacked once


def test_videos_are_unpacked_to_the_folder_that_a_config_names(tmp_path, video):
    write_tar(tmp_path / "tars/test/0.tar", {"7": {"mp4": video, "txt": b"a cat"}})
    place = tmp_path / "videos"
    table = DATASETS["webdataset"](tmp_path / "tars", VideosFolder(str(place)))
    assert table["path"].to_pylist() == [str(place / "test/0/7.mp4")]
    assert (place / "test/0/7.mp4").read_bytes() == video
    assert not (tmp_path / "tars/unpacked").exists()

    bucket = VideosFolder("s3://bucket/videos?region=us-east-1&endpoint_override=localhost:1")
    with pytest.raises(DatasetError, match="s3://bucket/videos: tars are unpacked to a local folder"):
        DATASETS["webdataset"](tmp_path / "tars", bucket)
    with pytest.raises(DatasetError, match=rf"annotations' folder {tmp_path}/nowhere does not exist"):
        DATASETS["webdataset"](tmp_path / "nowhere", place)


def test_what_is_no_file_of_the_tar_is_not_unpacked(tmp_path, video):
    (tmp_path / "test").mkdir()
    with tarfile.open(tmp_path / "test/0.tar", "w") as archive:
        add(archive, "../out.mp4", video)
        add(archive, "/abs.mp4", video)
        add(archive, "link.mp4", b"", tarfile.SYMTYPE)
        add(archive, "good.mp4", video)
        add(archive, "good.txt", b"a caption")
        add(archive, "alone.txt", b"no video")
        add(archive, "odd.json", b"[" * 100_000)
        add(archive, "odd.mp4", video)
    table = DATASETS["webdataset"](tmp_path, tmp_path)
    assert table["video"].to_pylist() == ["test/0/good"]
    unpacked = sorted(path.name for path in (tmp_path / "unpacked").rglob("*") if path.is_file())
    assert unpacked == ["good.mp4", "odd.mp4"]
    assert not (tmp_path / "out.mp4").exists()
    words = " ".join(problem.what for problem in problems(table))
    assert "sample 'alone' left out: no video" in words
    assert "'test/0/odd' left out: no caption" in words


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("00000.tar", None, "sample '7' has no split; put tars into folders train, val, test"),
        ("test/0.tar", b"no tar " * 100, "test/0.tar: "),
        ("note.txt", b"", "holds no \\*.tar"),
    ],
)
def test_tars_that_cannot_be_used_are_refused_in_one_line(tmp_path, video, name, data, message):
    if data is None:
        write_tar(tmp_path / name, {"7": {"mp4": video, "txt": b"a"}})
    else:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"^[^\n]*{message}[^\n]*$"):
        DATASETS["webdataset"](tmp_path, tmp_path)


def test_shards_go_out_as_tars_with_every_frame_and_caption(tmp_path):
    shards = make_shards(tmp_path / "shards", videos=5)
    rows = [
        {"split": "train", "video": f"v{i:03}", "path": None, "start": None, "end": None, "caption": word}
        for i in range(4)
        for word in ("first", "second")
    ]
    rows.append(rows[0] | {"split": "test", "video": "v004"})
    rows.append(rows[0] | {"video": "not decoded"})
    tars = export_webdataset(shards, pa.Table.from_pylist(rows, ANNOTATIONS), tmp_path / "out", per_tar=3)
    assert [tar.name for tar in tars] == ["train-00000.tar", "train-00001.tar", "test-00000.tar"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {tar.name for tar in tars}

    with tarfile.open(tars[1]) as archive:
        names = archive.getnames()
        assert names == [*(f"000000003.{i:03}.jpg" for i in range(6)), "000000003.txt", "000000003.json"]
        frames = np.stack([np.asarray(Image.open(archive.extractfile(name))) for name in names[:6]])
        facts = json.loads(archive.extractfile("000000003.json").read())
    assert (facts["video"], facts["captions"]) == ("v003", ["first", "second"])
    expected = shards.frames("v003").astype(float)
    assert np.abs(frames - expected).mean() < 0.8 * np.abs(frames - expected[::-1]).mean()  # noise in JPEG


def test_the_command_exports_what_a_config_names(tmp_path, capsys):
    make_shards(tmp_path / "shards", videos=2)
    lines = [{"video": f"v{i:03}", "split": "test", "captions": ["a"]} for i in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["conf/own_videos.yaml", str(tmp_path / "shards"), str(tmp_path / "out"), f"data.root={tmp_path}"]
    assert export.main(words) == 0
    assert (tmp_path / "out/test-00000.tar").is_file()
    words[1] = str(tmp_path / "none")
    assert export.main(words) == 2
    assert "holds no shards" in capsys.readouterr().err
