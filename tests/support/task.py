"""A small task for workers of Ray Train, and what stands in the place of their mailbox."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from support.clip_config import write_clip_config
from support.ingest import annotations
from support.tuning import CAPTIONS, SIZE, make_shards

from pipelines.tune.worker import Task, training_captions
from vopcore.clip import CLIP, tokenizer
from vopcore.config import MethodRun, RunConfig, Train
from vopcore.config.sections import Backbone, Data, Video
from vopcore.methods import METHODS
from vopcore.shards import Shards
from vopcore.training.batches import TrainingBatches


def small_task(folder: Path) -> Task:
    """vop_p on a tiny CLIP, over three epochs of three steps; shards and all else lie in `folder`."""
    model = write_clip_config(folder / "model.json", vision={"image_size": SIZE}, text={"width": 16})
    make_shards(folder / "shards")
    settings = Train(epochs=3, batch_size=8, lr=1e-2, augment=True, checkpoint_every=2)
    run = MethodRun(name="vop_p", method=METHODS["vop_p"](vision_prompts=4, specific=2), train=settings)
    config = RunConfig(
        name="small",
        output=str(folder),
        data=Data(dataset="folder", root=str(folder)),
        video=Video(frames=4, size=SIZE),
        clip=Backbone(model=str(model), pretrained=None, words=16),
        methods=(run,),
    )
    train = annotations(dict.fromkeys(CAPTIONS), captions=2)
    test = train.slice(0, 4).set_column(0, "split", pa.array(["test"] * 4))
    return Task(config, run, pa.concat_tables([train, test]), str(folder / "shards"))


def listener(hears: Callable[[int], None] = lambda step: None) -> Any:
    """A mailbox: `hears` is called with each step in rank 0's process. Travels to workers as it is."""

    # Made in here, so that it is sent by its content: workers do not find the modules of tests.
    class Listener:
        def __init__(self):
            self.put = self

        def remote(self, what, unit, done, total, words):
            if what == "tune":
                hears(done)

    return Listener()


def training_batches(task: Task, clip: CLIP) -> TrainingBatches:
    """What the only worker of a task trains `clip` on."""
    config, settings, shards = task.config, task.run.train, Shards(task.shards)
    return TrainingBatches(
        shards,
        training_captions(task.annotations, shards),
        tokenizer(clip, config.clip.words),
        frames=config.video.frames,
        batch_size=settings.batch_size,
        draw=settings.captions,
        seed=config.seed,
        augment=settings.augment,
    )
