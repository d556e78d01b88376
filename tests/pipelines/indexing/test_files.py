"""Which files of a folder are videos to index, and which are never opened."""

import os

import pytest

from pipelines.indexing.files import FolderError, list_videos


def test_videos_at_any_depth_are_listed_with_size_and_time(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "b.MP4").write_bytes(b"12")
    (tmp_path / "deep/er/a 'x' <b>.webm").write_bytes(b"123")
    (tmp_path / "notes.txt").write_text("no video")
    os.utime(tmp_path / "b.MP4", (5, 7))
    files = list_videos(str(tmp_path)).files
    assert [(file.video, file.size) for file in files] == [("b.MP4", 2), ("deep/er/a 'x' <b>.webm", 3)]
    assert files[0].mtime == 7


def test_links_out_of_the_folder_pipes_and_odd_names_are_refused_with_the_reason(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.mp4").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inner.mp4").write_bytes(b"secret")
    (root / "fine.mp4").write_bytes(b"1")
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "inside.mp4").symlink_to(root / "fine.mp4")
    (root / "dangling.mp4").symlink_to(root / "nothing.mp4")
    (root / "folder").symlink_to(tmp_path / "folder")
    os.mkfifo(root / "pipe.mp4")
    with open(os.fsencode(root) + b"/\xff.mp4", "wb"):  # noqa: PTH123 - a name that no Path prints
        pass

    listing = list_videos(str(root))
    assert [file.video for file in listing.files] == ["fine.mp4", "inside.mp4"]
    reasons = {entry.video: entry.error for entry in listing.refused}
    assert set(reasons) == {"link.mp4", "dangling.mp4", "pipe.mp4", "\\xff.mp4"}
    assert "outside the folder" in reasons["link.mp4"]
    assert "pipe" in reasons["pipe.mp4"]
    assert "not UTF-8" in reasons["\\xff.mp4"]


def test_a_folder_without_a_video_is_refused(tmp_path):
    with pytest.raises(FolderError, match="no video in this folder"):
        list_videos(str(tmp_path))
    with pytest.raises(FolderError, match="no such folder"):
        list_videos(str(tmp_path / "gone"))
