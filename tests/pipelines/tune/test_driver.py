"""Tuning as the driver sees it, on a real Ray Train: what is not tried again."""

import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from support.task import listener, small_task

from pipelines.tune.driver import fit
from pipelines.tune.worker import HopelessError, work

pytestmark = pytest.mark.usefixtures("own_ray")


def trainer(folder, hears, workers) -> TorchTrainer:
    """Of `small_task`, with a mailbox that hears of the steps."""
    return TorchTrainer(
        work,
        train_loop_config={"task": small_task(folder), "mailbox": listener(hears)},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="run", storage_path=str(folder / "runs")),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_without_room_names_the_ways_out_and_is_not_tried_again(tmp_path, workers, capsys):
    """With two workers, one of them only: the other one waits for its gradients."""
    starts = tmp_path / "starts"

    def runs_out_of_memory(step):
        with starts.open("a") as file:
            file.write(f"{step}\n")
        if step == 2:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.07 GiB of"
                " which 1.10 GiB is free."
            )

    with pytest.raises(HopelessError) as caught:
        fit(lambda: trainer(tmp_path, runs_out_of_memory, workers), "vop_p", max_failures=3)
    assert str(caught.value) == (
        "the GPU's memory is too small (CUDA out of memory): set train.micro_batch (activations of fewer"
        " videos at once), train.precision=bf16 or train.grad_checkpointing=true"
    )
    assert starts.read_text().split() == ["1", "2"]
    assert "restart" not in capsys.readouterr().err
