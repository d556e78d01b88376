"""Recall of a split as a worker measures it, alone and with another, against each pair's similarity."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from support import ROOT
from support.methods import tiny_clip
from support.tuning import CAPTIONS, make_shards, tokenize

from pipelines.tune.evaluate import SplitEvaluator
from vopcore.config import Evaluate
from vopcore.datasets.table import SENTENCES
from vopcore.index.moments import Span, refine
from vopcore.metrics import evaluate
from vopcore.metrics.moments import overlap
from vopcore.metrics.names import CURVES
from vopcore.retriever import Retriever
from vopcore.training.batches import stack_frames
from vopcore.video import choose

FRAMES = 4


def split():
    """Every caption of the small world, and one of a video that was never decoded."""
    pairs = [(video, caption) for video, captions in CAPTIONS.items() for caption in captions]
    videos, captions = zip(*pairs, ("gone", "caption 7"), strict=True)
    return pa.table({"video": videos, "caption": captions})


def evaluator(folder, pooling, told=lambda embedded, total: None):
    torch.manual_seed(0)
    retriever = Retriever(tiny_clip(), pooling)
    shards = make_shards(folder, short=3)
    return SplitEvaluator(retriever, shards, tokenize, FRAMES, told), retriever, shards


@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
@torch.no_grad()
def test_the_numbers_are_those_of_every_pairs_similarity(tmp_path, pooling):
    told = []
    measure, retriever, shards = evaluator(tmp_path, pooling, lambda *progress: told.append(progress))
    rows = split()
    result = measure.measure(rows, ["caption 3"], Evaluate(post_processing=("dsl", "qb_norm")), seed=1)

    videos = list(CAPTIONS)
    pixels, mask = stack_frames(shards, videos, FRAMES, [None] * len(videos))
    text = retriever.text(tokenize(rows["caption"].to_pylist()))
    matrix = retriever.similarity(text, retriever.video(pixels, mask), mask)
    wanted = evaluate(lambda numbers: matrix[numbers], rows["video"].to_pylist(), videos, seed=1).to_dict()
    assert {name: result.numbers[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert {"dsl/t2v/R1", "qb_norm/t2v/R1"} <= result.numbers.keys()
    assert told[-1] == (len(videos), len(videos))

    best = matrix.sort(dim=1, descending=True)
    torch.testing.assert_close(
        torch.tensor(result.predictions["scores"].to_pylist()), best.values[:, :5], rtol=0, atol=2e-6
    )
    assert result.predictions["found"].to_pylist()[-1] is False
    assert result.videos.names == videos
    assert result.videos.vectors.shape[0] == len(videos)

    curve = measure.recall(rows)
    assert {name: curve[name] for name in CURVES} == {name: result.numbers[name] for name in CURVES}
    assert not [name for name in curve if name.endswith("_low")]


def test_qb_norm_without_training_captions_is_refused(tmp_path):
    measure, _, _ = evaluator(tmp_path, "mean")
    with pytest.raises(ValueError, match="qb_norm needs captions of the training split"):
        measure.measure(split(), [], Evaluate(post_processing=("qb_norm",)), seed=0)


@torch.no_grad()
def test_sentences_are_searched_for_inside_their_own_videos(tmp_path):
    measure, retriever, shards = evaluator(tmp_path, "mean")
    sentences = [{"sentence": "caption 5", "start": 0.0, "end": 2.5}]
    rows = pa.table({"video": ["v005", "gone"], "caption": ["caption 1", "caption 2"]})
    rows = rows.append_column("sentences", pa.array([sentences, sentences], SENTENCES))
    numbers = measure.measure(rows, [], Evaluate(moments=True), seed=0).numbers

    pixels, _ = stack_frames(shards, ["v005"], FRAMES, [None])
    frames = F.normalize(retriever.video(pixels)[0], dim=-1)
    scores = (F.normalize(retriever.text(tokenize(["caption 5"])), dim=-1) @ frames.T)[0].numpy()
    times = np.array(shards.videos["v005"].times)[choose(6, FRAMES, None)]
    whole = Span(0.0, float(times[-1]))
    span, _ = refine(times, scores, float(scores.mean()), whole, whole)
    wanted = overlap(span.start, span.end, 0.0, 2.5)
    assert numbers["moment/queries"] == 2
    assert numbers["moment/mIoU"] == pytest.approx(100 * (wanted + 0) / 2)
    assert numbers["moment/R1_0.5"] in (0.0, 50.0)


PROGRAM = """
import json, sys
sys.path.insert(0, "tests/pipelines/tune")
from pathlib import Path
from test_evaluate import evaluator, split
from vopcore.config import Evaluate
rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if count > 1:
    from torch.distributed import init_process_group
    init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
for pooling in ("mean", "query_aware"):
    measure, _, _ = evaluator(folder / f"{pooling}{rank}of{count}", pooling)
    result = measure.measure(split(), [], Evaluate(), seed=0)
    print(json.dumps([result.numbers, result.predictions["scores"].to_pylist()]))
"""


def run_workers(folder, count):
    """What each of `count` workers printed."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1", "PATH": ""}
    workers = []
    for rank in range(count):
        command = [sys.executable, "-c", PROGRAM, str(rank), str(count), str(folder)]
        workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE))
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * count
    return outputs


def test_two_workers_measure_what_one_does(tmp_path):
    (alone,) = run_workers(tmp_path, 1)
    assert run_workers(tmp_path, 2) == [alone, alone]
