"""The table of what was found for each caption, against a matrix one can check by eye."""

import pyarrow as pa
import torch

from vopcore.metrics import evaluate
from vopcore.metrics.predictions import PREDICTIONS, TOP, predictions

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.3, 0.2],  # a: first
        [0.5, 0.5, 0.1, 0.0],  # b: ties with a for the first place
        [0.9, 0.8, 0.1, 0.7],  # c: last of four
        [0.1, 0.2, 0.3, 0.4],  # gone: its video is not in the gallery
    ]
)


def table(captions, gallery):
    def similarity(rows):
        return SCORES[rows][:, : len(gallery)]

    split = pa.table({"video": captions, "caption": [f"a caption of {video}" for video in captions]})
    return predictions(split, gallery, evaluate(similarity, captions, gallery, num_top=TOP))


def test_each_caption_has_its_rank_its_best_videos_and_their_scores():
    found = table(["a", "b", "c", "gone"], ["a", "b", "c", "d"])
    assert found.schema == PREDICTIONS
    assert found["rank"].to_pylist() == [1.0, 1.5, 4.0, 5.0]
    assert found["found"].to_pylist() == [True, True, True, False]
    assert found["top"].to_pylist()[2:] == [["a", "b", "d", "c"], ["d", "c", "b", "a"]]
    torch.testing.assert_close(torch.tensor(found["scores"].to_pylist()), SCORES.sort(descending=True).values)
    assert found["caption"].to_pylist()[1] == "a caption of b"


def test_no_more_than_the_best_few_are_kept_of_a_large_gallery():
    gallery = [f"v{i}" for i in range(9)]
    split = pa.table({"video": ["v2"], "caption": ["x"]})
    scores = torch.arange(9.0)[None]

    def similarity(rows):
        return scores[rows]

    found = predictions(split, gallery, evaluate(similarity, ["v2"], gallery, num_top=TOP))
    assert found["top"].to_pylist() == [[f"v{i}" for i in range(8, 8 - TOP, -1)]]
    assert found["rank"].to_pylist() == [7.0]
