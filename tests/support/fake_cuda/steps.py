"""Training steps of many methods on the fake GPU: `python -m support.fake_cuda.steps CASES`, JSON in and out.

A case: {"name", "pooling", "videos", "frames", "words", "tiny", "short", "resumed", "estimate", "train"}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from support.fake_cuda.device import Recorder, pretend

pretend()

import torch  # noqa: E402 - after the patches
from support.fake_cuda import models  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from vopcore.config import Train  # noqa: E402
from vopcore.training.memory import estimate  # noqa: E402
from vopcore.training.trainer import Tuner  # noqa: E402


class OneBatch:
    """Stands where TrainingBatches do: `steps` times the same batch."""

    def __init__(self, batch: Any, steps: int) -> None:
        self._batches = [batch] * steps

    def epochs(self, first: int, stop: int, start: int) -> Any:
        batches = self._batches * (stop - first)
        return iter(batches[start:])


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What the second step of a case did."""
    settings = Train(epochs=10, warmup=0, **case.get("train", {}))
    frames = case.get("frames", 4)
    tiny = case.get("tiny", True)
    one = models.retriever(case["name"], settings, case.get("pooling", "mean"), tiny, frames)
    batch = models.batch(one, case.get("videos", 4), frames, case.get("words", 12))
    answer: dict[str, Any] = {}

    tuner = Tuner(one, settings, 2, seed=0)
    with Recorder():  # answers what is asked of values; the first steps are not counted
        if case.get("estimate"):
            answer["estimated"] = estimate(one.train(), batch).bytes(len(batch.videos))
        list(tuner.epoch(OneBatch(batch, 2)))
        if case.get("resumed"):
            load_again(tuner)

    weights = sum(tensor.nbytes for tensor in (*one.parameters(), *one.buffers()))
    moments = 2 * sum(parameter.nbytes for parameter in tuner.tuned.values())
    with Recorder(all_true=not case.get("short", False)) as recorder:
        list(tuner.epoch(OneBatch(batch, 2)))

    missing = [name for name, parameter in tuner.tuned.items() if parameter.grad is None]
    assert not missing, missing
    return answer | {
        "syncs_per_step": len(recorder.syncs) / 2,
        "syncs": recorder.syncs,
        "operations": sum(recorder.operations.values()) / 2,
        "by_name": recorder.operations.most_common(),
        "bytes": recorder.num_bytes / 2,
        "peak": weights + moments + recorder.peak,
        "attention": [name for name in recorder.operations if "attention" in name],
    }


def load_again(tuner: Tuner) -> None:
    """The optimizer's state on its way through a checkpoint: read to the CPU, then loaded."""
    state = tuner._optimizer.state_dict()
    on_cpu = torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("cpu"), state)
    tuner._optimizer.load_state_dict(on_cpu)


if __name__ == "__main__":
    with FakeTensorMode():
        print(json.dumps([run(case) for case in json.loads(Path(sys.argv[1]).read_text())]))
