"""What the frozen blocks make of each frame, computed once: methods that tune only upper blocks start there.

Kept as Arrow files beside the shards, a record batch per video, of what enters the first tuned block of the
vision tower: the whole sequence of each stored frame, or past the last block its class token.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from vopcore.clip import first_tuned_layer, prefix_hash, prefix_shape
from vopcore.config import fingerprint
from vopcore.retriever import Retriever
from vopcore.shards import Shards
from vopcore.shards.readers import ArrowFiles, FileName
from vopcore.shards.schema import pick
from vopcore.storage import ShardCache, Store, below, file_sha256

Kept = Literal["bf16", "fp32"]
STORED = {"bf16": np.dtype(np.uint16), "fp32": np.dtype(np.float32)}  # Arrow has no bfloat16: its bits
BYTES = 64 * 2**20  # of a file: the last ones keep no worker waiting long
FRAMES = 256  # computed at once


@dataclass(frozen=True)
class PrefixPlan:
    """Which videos go into which file of `folder`; the same on every worker."""

    folder: str
    layer: int
    kept: Kept
    groups: list[list[str]]

    def missing(self) -> list[int]:
        """The files that are not written yet, by number."""
        there = set(Store(self.folder).names())
        return [number for number in range(len(self.groups)) if f"{number:06d}.json" not in there]


def plan(
    retriever: Retriever, shards: Shards, videos: list[str], kept: Kept, folder: str
) -> PrefixPlan | None:
    """Files under `folder`, in a folder named by what decides their content; None if nothing is frozen
    below the first tuned block."""
    layer = first_tuned_layer(retriever.clip)
    if layer == 0:
        return None
    tokens, width = prefix_shape(retriever.clip, layer)
    stored = max(map(shards.num_frames, videos))
    size = stored * tokens * width * STORED[kept].itemsize
    per_file = max(1, BYTES // size)
    groups = [videos[i : i + per_file] for i in range(0, len(videos), per_file)]
    places = [[shards.place(video) for video in group] for group in groups]
    key = fingerprint([prefix_hash(retriever.clip, layer), layer, kept, retriever.precision, groups, places])
    return PrefixPlan(below(folder, f"layer{layer}-{kept}-{key}"), layer, kept, groups)


def write(
    plan: PrefixPlan,
    numbers: list[int],
    retriever: Retriever,
    shards: Shards,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compute the files `numbers`; each appears when it is whole. `tell` hears of videos done and in all."""
    store, done = Store(plan.folder), 0
    total = sum(len(plan.groups[number]) for number in numbers)
    for number in numbers:
        videos = plan.groups[number]
        store.sweep(f"{number:06d}.")  # what a killed attempt has left
        with store.writing(f"{number:06d}.arrow") as path:
            with pa.OSFile(str(path), "wb") as sink:
                writer = None
                for video, kept in _computed(plan, videos, retriever, shards):
                    batch = _batch(video, kept)
                    writer = writer or pa.ipc.new_file(sink, batch.schema)
                    writer.write_batch(batch)
                    done += 1
                    tell(done, total)
                writer.close()
            said = {"videos": videos, "sha256": file_sha256(path)}
        store.write(f"{number:06d}.json", json.dumps(said).encode())


def _computed(
    plan: PrefixPlan, videos: list[str], retriever: Retriever, shards: Shards
) -> Iterator[tuple[str, np.ndarray]]:
    """Each video with what is kept of its frames, [F, L, D]; several go through the towers together."""
    device = retriever.mean.device
    together = max(1, FRAMES // max(map(shards.num_frames, videos)))
    for start in range(0, len(videos), together):
        names = videos[start : start + together]
        frames = [shards.frames(video) for video in names]
        pixels = shards.tensor(np.concatenate(frames)).to(device)
        x = retriever.prefix(pixels, plan.layer)
        x = x.bfloat16().view(torch.uint16) if plan.kept == "bf16" else x.float()
        counts = [len(f) for f in frames]
        yield from zip(names, (part.numpy() for part in x.cpu().split(counts)), strict=True)


def _batch(video: str, kept: np.ndarray) -> pa.RecordBatch:
    """One video; kept [F, L, D]."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(kept.dtype), kept.shape[1:])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), int(np.prod(kept.shape[1:])))
    frames = pa.ListArray.from_arrays(
        pa.array([0, len(kept)], pa.int32()), pa.ExtensionArray.from_storage(kind, flat)
    )
    return pa.record_batch({"video": [video], "prefix": frames})


class Prefix:
    """Reads what `write` has written, for several threads; stands where Shards do in `TrainingBatches`."""

    def __init__(self, plan: PrefixPlan, cache: ShardCache | None = None) -> None:
        self._store = Store(plan.folder)
        self._files = ArrowFiles(self._store, cache or ShardCache())
        self._names: dict[int, FileName] = {}
        self._place = {}
        for number, videos in enumerate(plan.groups):
            for row, video in enumerate(videos):
                self._place[video] = (number, row)

    def num_frames(self, video: str) -> int:
        """How many frames of a video are kept: all that are stored."""
        return len(self._frames(video))

    def frames(
        self, video: str, indices: list[int] | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """What is kept of the frames at `indices`, or of all: [F, L, D], as the bits of bf16 or float32; into
        `out`, if given."""
        kept = self._frames(video)
        frames = kept.storage.flatten().to_numpy().reshape(-1, *kept.type.shape)  # a view of the file
        return pick(frames, indices, out)

    def prefetch(self, videos: Iterable[str]) -> None:
        """Begin to fetch the files of videos that will be read soon; returns at once."""
        if self._store.is_local:
            return
        numbers = dict.fromkeys(self._place[video][0] for video in videos)
        self._files.prefetch([self._name(number) for number in numbers])

    @staticmethod
    def tensor(frames: np.ndarray) -> torch.Tensor:
        """bfloat16 or float32 [..., L, D]"""
        tensor = torch.from_numpy(frames)
        return tensor.view(torch.bfloat16) if frames.dtype == np.uint16 else tensor

    def _frames(self, video: str) -> pa.FixedShapeTensorArray:
        number, row = self._place[video]
        return self._files.batch(self._name(number), row).column("prefix").values

    def _name(self, number: int) -> FileName:
        """The file of a number, and what its sidecar says of it, which is read once."""
        if number not in self._names:
            sidecar = json.loads(self._store.read(f"{number:06d}.json"))
            self._names[number] = FileName(f"{number:06d}.arrow", sidecar["sha256"])
        return self._names[number]
