"""Ranking as a run does it, from frame features to numbers and predictions, beside the least it could cost.

    PYTHONPATH=.:tests python tests/benchmarks/bench_ranking.py [captions = videos, 20000] [width, 512]

`shipped` pools the frames and ranks through pipelines/tune/evaluate.py; `shortcut` only counts from vectors
that are there already. `all pairs` is `query_aware` without its first stage. Ratios of one run, one thread.
"""

import resource
import sys
import time

import pyarrow as pa
import torch
import torch.nn.functional as F
from support.methods import tiny_clip

from pipelines.tune.evaluate import EmbeddedSplit, SplitEvaluator
from vopcore.metrics import evaluate
from vopcore.metrics.predictions import TOP, predictions
from vopcore.retriever import Retriever

FRAMES = 12
CHUNK = 1024  # videos whose frame features are made, and pooled, at once


class Corpus:
    """Texts, and features of 12 frames a video that lie around its text as CLIP's do: cosines of right pairs
    are 0.2 to 0.4, of others 0 with a deviation of 0.04, of two frames of a video 0.8."""

    def __init__(self, num: int, width: int) -> None:
        generator = torch.manual_seed(0)
        self.text = 10 * F.normalize(torch.randn(num, width, generator=generator), dim=1)
        self.ids = [str(number) for number in range(num)]
        self.split = pa.table({"video": self.ids, "caption": self.ids})

    def frames(self, start: int) -> torch.Tensor:
        """Float32 [CHUNK, FRAMES, D] of the videos from `start` on."""
        generator = torch.manual_seed(start + 1)
        text = F.normalize(self.text[start : start + CHUNK], dim=1)
        scene = F.normalize(torch.randn(text.shape, generator=generator), dim=1)
        change = torch.randn(len(text), FRAMES, text.shape[1], generator=generator) / text.shape[1] ** 0.5
        strength = 0.2 + 0.2 * torch.rand(len(text), 1, 1, generator=generator)
        return 10 * F.normalize(strength * text[:, None] + 0.9 * scene[:, None] + 0.5 * change, dim=-1)


def shipped(corpus: Corpus, pooling: str) -> float:
    """CPU seconds from frame features to metrics and predictions; making the features is not counted."""
    retriever = Retriever(tiny_clip(), pooling)
    evaluator = SplitEvaluator(retriever, None, None, FRAMES, lambda embedded, total: None)
    seconds = 0.0
    chunks = []
    for start in range(0, len(corpus.ids), CHUNK):
        features = corpus.frames(start)
        began = time.process_time()
        chunks.append(retriever.vectors(features))
        seconds += time.process_time() - began

    began = time.process_time()
    ranking = EmbeddedSplit(corpus.ids, corpus.ids, corpus.text, torch.cat(chunks), retriever)
    metrics = evaluator._plain(ranking, seed=0, num_top=TOP)
    metrics.to_dict()
    predictions(corpus.split, corpus.ids, metrics)
    return seconds + time.process_time() - began


def shortcut(corpus: Corpus) -> float:
    """CPU seconds of counting from unit vectors."""
    text = F.normalize(corpus.text, dim=1)
    video = F.normalize(text + 0.1 * torch.randn(text.shape, generator=torch.manual_seed(0)), dim=1)
    began = time.process_time()
    evaluate(lambda rows: text[rows] @ video.T, corpus.ids, corpus.ids)
    return time.process_time() - began


def all_pairs(corpus: Corpus) -> float:
    """CPU seconds of `query_aware` by every pair's weighted frames, twice, as one stage needs."""
    retriever = Retriever(tiny_clip(), "query_aware")
    frames = torch.cat([corpus.frames(start) for start in range(0, len(corpus.ids), CHUNK)])
    began = time.process_time()
    evaluate(lambda rows: retriever.rank(corpus.text[rows], frames), corpus.ids, corpus.ids)
    return time.process_time() - began


def by_sorting(num: int, width: int) -> float:
    """CPU seconds of the field's way: the whole matrix, argsort twice, both directions."""
    text = Corpus(num, width).text
    began = time.process_time()
    similarity = text @ text.T
    for scores in (similarity, similarity.T):
        scores.argsort(dim=1, descending=True).argsort(dim=1).diagonal()
    return time.process_time() - began


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    width = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    torch.set_num_threads(1)
    shipped(Corpus(500, width), "mean")

    for num in (largest // 4, largest // 2, largest):
        corpus = Corpus(num, width)
        whole = shipped(corpus, "mean")
        least = shortcut(corpus)
        print(
            f"mean        {num:>7,} x {num:,}: shipped {whole:7.1f} s CPU,"
            f" {1e9 * whole / num**2:5.1f} ns per pair, shortcut {least:7.1f} s, ratio {whole / least:.2f}",
            flush=True,
        )
    for num in (largest // 10, largest // 5):
        corpus = Corpus(num, width)
        staged = shipped(corpus, "query_aware")
        pairs = all_pairs(corpus)
        print(
            f"query_aware {num:>7,} x {num:,}: shipped {staged:7.1f} s CPU,"
            f" {1e9 * staged / num**2:5.1f} ns per pair, all pairs {pairs:.1f} s, ratio {pairs / staged:.1f}",
            flush=True,
        )
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(f"sorting / shipped at 4,000: {by_sorting(4000, width) / shipped(Corpus(4000, width), 'mean'):.1f}")


if __name__ == "__main__":
    main()
