"""Features and similarities of every method on the fake GPU: JSON, a line per failure."""

import json

from support.fake_cuda.device import Recorder, pretend

pretend()

import torch  # noqa: E402 - after the patches
from support.fake_cuda import models  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from vopcore.clip import first_tuned_layer  # noqa: E402
from vopcore.config import Train  # noqa: E402
from vopcore.methods import METHODS  # noqa: E402


@torch.no_grad()
def score(name: str, pooling: str, precision: str) -> None:
    """What an evaluation and a search do; raises where something is left on the CPU or has a wrong dtype."""
    one = models.retriever(name, Train(precision=precision), pooling).eval()
    batch = models.batch(one, videos=3, frames=4, words=12)
    frames = batch.frames.to(models.DEVICE)
    mask = batch.mask.to(models.DEVICE)
    for real in (None, mask):
        features = one.video(frames, real)
        text = one.text(batch.tokens.to(models.DEVICE))
        similarity = one.similarity(text, features, real)
        ranked = one.rank(text, one.vectors(features, real))
        for tensor in (features, text, similarity, ranked):
            assert tensor.is_cuda
            assert tensor.dtype == torch.float32
    one.prefix(frames.flatten(0, 1), first_tuned_layer(one.clip))


if __name__ == "__main__":
    failures = []
    with FakeTensorMode(), Recorder():
        for name in METHODS:
            for pooling, precision in (("mean", "fp32"), ("query_aware", "bf16")):
                try:
                    score(name, pooling, precision)
                except Exception as error:
                    failures.append(f"{name} {pooling} {precision}: {type(error).__name__}: {error}")
    print(json.dumps(failures))
