"""Windows decoded in a child process: the frames of `decode`, each once, and a reason for what fails."""

import numpy as np
import pytest
from support.video import number_in, write_video

from pipelines.indexing.driver import join
from pipelines.indexing.task import DecodeSettings, DecodingChild, Ending, decode_windows
from vopcore.index import MomentRows, Span, WindowRule


@pytest.fixture
def settings(tmp_path):
    return DecodeSettings(
        root=str(tmp_path), rule=WindowRule(2, 1), frames=4, size=64, sampler="uniform", time_limit=60
    )


def test_overlapping_windows_share_their_frames(tmp_path, settings):
    write_video(tmp_path / "a.mp4", 100, rate=10)
    *pieces, ending = decode_windows(settings, "a.mp4")
    assert ending == Ending("ok", None, 10.0)
    assert [span for piece in pieces for span in piece.spans] == WindowRule(2, 1).windows(10.0)
    (piece,) = pieces
    shown = [number_in(square) for square in piece.pixels]
    assert len(set(shown)) == len(shown)
    for span, rows in zip(piece.spans, piece.frames, strict=True):
        first = round(span.start * 10)
        assert [shown[row] for row in rows] == [first + 2, first + 7, first + 12, first + 17]
        np.testing.assert_allclose(
            piece.times[rows], [n / 10 for n in (first + 2, first + 7, first + 12, first + 17)]
        )


def test_a_child_goes_on_after_a_video_that_fails(tmp_path, settings):
    (tmp_path / "bad.mp4").write_text("<html>")
    write_video(tmp_path / "a.mp4", 30, rate=10)
    with DecodingChild(settings) as child:
        (failed,) = child.decode("bad.mp4")
        assert failed.status == "failed"
        assert failed.error.startswith("not a readable video file")
        (gone,) = child.decode("gone.mp4")
        assert gone.status == "failed"
        *pieces, ending = child.decode("a.mp4")
        assert (len(pieces), ending.status) == (1, "ok")
        child._process.kill()
        (killed,) = child.decode("a.mp4")
        assert killed.status == "failed"
        assert "crashed" in killed.error
        assert list(child.decode("a.mp4"))[-1].status == "ok"


def test_pieces_are_joined_in_order():
    def piece(start: float) -> MomentRows:
        return MomentRows(
            spans=[Span(start, start + 1)],
            best=np.array([start], np.float32),
            vectors=np.full((1, 2), start, np.float16),
            features=np.full((2, 2), start, np.float16),
            times=np.array([start, start + 0.5], np.float32),
            frames=[[0, 1]],
            thumbnails=[b"x"],
        )

    joined = join([piece(0.0), piece(1.0)])
    assert joined.frames == [[0, 1], [2, 3]]
    assert joined.times.tolist() == [0, 0.5, 1, 1.5]
    assert [span.start for span in joined.spans] == [0, 1]
