"""Methods on the fake GPU: retrievers and batches of the right shapes."""

import torch
from support.methods import method, tiny_clip

import vopcore.clip.frozen
from vopcore.clip import blank
from vopcore.config import Train
from vopcore.methods import METHODS, tune
from vopcore.retriever import Retriever
from vopcore.training import precision
from vopcore.training.batches import Batch

vopcore.clip.frozen.frozen_hash = lambda clip: "fake"  # reads bytes, of which there are none

DEVICE = torch.device("cuda", 0)


def retriever(
    name: str, settings: Train, pooling: str = "mean", tiny: bool = True, frames: int = 4
) -> Retriever:
    """A method on the tiny CLIP or on ViT-B/32, made on the GPU."""
    with DEVICE:
        clip = tiny_clip() if tiny else blank("ViT-B-32-quickgelu")
        tune(clip, method(name) if tiny else METHODS[name](), frames)
    kept = precision.apply(precision.resolve(settings.precision, DEVICE))
    return Retriever(clip, pooling, settings.learn_logit_scale, kept)


def batch(one: Retriever, videos: int, frames: int, words: int, crops: bool = True) -> Batch:
    """Random pixels on the CPU, in the order in which shards hold them."""
    size = one.clip.visual.image_size[0]
    pixels = torch.empty(videos, frames, size, size, 3, dtype=torch.uint8).movedim(-1, -3)
    return Batch(
        [f"v{number}" for number in range(videos)],
        pixels,
        torch.ones(videos, frames, dtype=torch.bool),
        torch.ones(videos, words, dtype=torch.int64),
        torch.ones(videos, 5, dtype=torch.int64) if crops else None,
        [f"caption {number}" for number in range(videos)],
    )
