"""Workers that share the blocks of a ranking get the numbers of one alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vopcore.metrics import MetricError, TwoStage, Workers, evaluate

COUNT = 3


class Meeting:
    """What `torch.distributed.all_reduce` does, between threads."""

    def __init__(self):
        self._barrier = threading.Barrier(COUNT, timeout=20)
        self._tensors = [None] * COUNT

    def adder(self, rank):
        def add_up(tensor):
            self._tensors[rank] = tensor
            self._barrier.wait()
            total = sum(self._tensors[1:], self._tensors[0])
            self._barrier.wait()
            return total

        return add_up


def together(function):
    meeting = Meeting()
    with ThreadPoolExecutor(COUNT) as pool:
        workers = [Workers(rank, COUNT, meeting.adder(rank)) for rank in range(COUNT)]
        return list(pool.map(function, workers))


CAPTIONS = [f"v{number}" for number in range(20) for _ in range(3)]
GALLERY = CAPTIONS[::3]
MATRIX = torch.randn(60, 20, generator=torch.manual_seed(0)).round(decimals=1)  # with ties


def test_shared_blocks_give_the_numbers_of_one_worker():
    alone = evaluate(lambda rows: MATRIX[rows], CAPTIONS, GALLERY, num_top=4)
    asked = []

    def similarity(rows):
        asked.append(len(rows))
        return MATRIX[rows]

    results = together(
        lambda workers: evaluate(similarity, CAPTIONS, GALLERY, num_top=4, block=100, workers=workers)
    )
    assert sum(asked) == 2 * 60  # each block is asked for by one worker, twice
    for metrics in results:
        assert metrics.to_dict() == alone.to_dict()
        assert torch.equal(metrics.top.scores, alone.top.scores)


def test_two_stages_are_shared_as_well():
    generator = torch.manual_seed(0)
    text = torch.randn(60, 8, generator=generator)
    video = text[::3, None] + torch.randn(20, 4, 8, generator=generator)
    alone = evaluate(None, CAPTIONS, GALLERY, bounded=TwoStage(text, video, 5.0))

    def shared(workers):
        own = TwoStage(text, video, 5.0)  # workers are processes, and each has its own
        return evaluate(None, CAPTIONS, GALLERY, bounded=own, block=100, workers=workers)

    for metrics in together(shared):
        assert metrics.to_dict() == alone.to_dict()


def test_all_workers_stop_where_one_meets_a_number_that_is_none():
    broken = MATRIX.clone()
    broken[7, 3] = torch.nan

    def refused(workers):
        with pytest.raises(MetricError, match="caption 7 of v2"):
            evaluate(lambda rows: broken[rows], CAPTIONS, GALLERY, block=100, workers=workers)
        return True

    assert together(refused) == [True] * COUNT
