"""What the frozen blocks make of each frame, computed once: methods that tune only upper blocks start there.

Kept as Arrow files beside the shards, a record batch per video, of what enters the first tuned block of the
vision tower: the whole sequence of each stored frame, or past the last block its class token.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

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

PrefixPrecision = Literal["bf16", "fp32"]

# Arrow has no bfloat16: its bits are stored.
STORED: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype(np.uint16),
    "fp32": np.dtype(np.float32),
}

# Of a file: small enough that the last ones keep no worker waiting long.
BYTES = 64 * 2**20

# Frames that go through the towers at once.
FRAMES = 256


@dataclass(frozen=True)
class PrefixPlan:
    """Which videos go into which file of `folder`; the same on every worker."""

    folder: str
    layer: int
    precision: PrefixPrecision
    groups: list[list[str]]

    def missing(self) -> list[int]:
        """The files that are not written yet, by number."""
        existing = set(Store(self.folder).names())
        numbers = []
        for number in range(len(self.groups)):
            # The sidecar is written last: with it a file is whole.
            if _sidecar_name(number) not in existing:
                numbers.append(number)
        return numbers


def plan(
    retriever: Retriever,
    shards: Shards,
    videos: list[str],
    precision: PrefixPrecision,
    folder: str,
) -> PrefixPlan | None:
    """Files under `folder`, in a folder named by what decides their content.

    None if nothing is frozen below the first tuned block.
    """
    layer = first_tuned_layer(retriever.clip)
    if layer == 0:
        return None

    # As many videos to a file as fit, if each had the frames of the longest one.
    tokens, width = prefix_shape(retriever.clip, layer)
    most_frames = max(map(shards.num_frames, videos))
    bytes_per_video = most_frames * tokens * width * STORED[precision].itemsize
    videos_per_file = max(1, BYTES // bytes_per_video)

    groups = []
    places = []
    for start in range(0, len(videos), videos_per_file):
        group = videos[start : start + videos_per_file]
        groups.append(group)
        places.append([shards.place(video) for video in group])

    content = [
        prefix_hash(retriever.clip, layer),
        layer,
        precision,
        retriever.precision,
        groups,
        places,
    ]
    name = f"layer{layer}-{precision}-{fingerprint(content)}"
    return PrefixPlan(
        below(folder, name),
        layer,
        precision,
        groups,
    )


def write(
    plan: PrefixPlan,
    numbers: list[int],
    retriever: Retriever,
    shards: Shards,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compute the files `numbers`; each appears when it is whole. `tell` hears of videos done and in all."""
    store = Store(plan.folder)
    num_videos = 0
    total = sum(len(plan.groups[number]) for number in numbers)

    for number in numbers:
        videos = plan.groups[number]

        # A killed attempt may have left something of this file.
        store.sweep(f"{number:06d}.")

        with store.writing(_file_name(number)) as path:
            with pa.OSFile(str(path), "wb") as sink:
                writer = None
                for video, states in _computed(plan, videos, retriever, shards):
                    batch = _batch(video, states)

                    # The first video tells the schema of the file.
                    if writer is None:
                        writer = pa.ipc.new_file(sink, batch.schema)
                    writer.write_batch(batch)
                    num_videos += 1
                    tell(num_videos, total)
                if writer is not None:
                    writer.close()
            sidecar = {
                "videos": videos,
                "sha256": file_sha256(path),
            }

        # Only now: a file counts as written once its sidecar is there.
        content = json.dumps(sidecar).encode()
        store.write(_sidecar_name(number), content)


def _file_name(number: int) -> str:
    return f"{number:06d}.arrow"


def _sidecar_name(number: int) -> str:
    return f"{number:06d}.json"


def _computed(
    plan: PrefixPlan,
    videos: list[str],
    retriever: Retriever,
    shards: Shards,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each video with the hidden states of its frames, [F, L, D]; several go through the towers together."""
    device = retriever.mean.device
    most_frames = max(map(shards.num_frames, videos))
    videos_at_once = max(1, FRAMES // most_frames)

    for start in range(0, len(videos), videos_at_once):
        names = videos[start : start + videos_at_once]
        frames = [shards.frames(video) for video in names]
        counts = [len(video_frames) for video_frames in frames]

        pixels = shards.tensor(np.concatenate(frames)).to(device)
        hidden = retriever.prefix(pixels, plan.layer)
        stored = _as_stored(hidden, plan.precision)

        states = stored.cpu().split(counts)
        for name, video_states in zip(names, states, strict=True):
            yield name, video_states.numpy()


def _as_stored(
    hidden: torch.Tensor,
    precision: PrefixPrecision,
) -> torch.Tensor:
    """float32, or the bits of bfloat16, which neither numpy nor Arrow knows, as uint16."""
    if precision == "bf16":
        return hidden.bfloat16().view(torch.uint16)
    return hidden.float()


def _batch(video: str, states: np.ndarray) -> pa.RecordBatch:
    """One video; states [F, L, D]."""
    frame_shape = states.shape[1:]
    value_type = pa.from_numpy_dtype(states.dtype)
    frame_type = pa.fixed_shape_tensor(value_type, frame_shape)

    values = pa.array(states.reshape(-1))
    values_per_frame = int(np.prod(frame_shape))
    flat = pa.FixedSizeListArray.from_arrays(values, values_per_frame)
    tensors = pa.ExtensionArray.from_storage(frame_type, flat)

    # One row: the list of all frames of the video.
    offsets = pa.array([0, len(states)], pa.int32())
    frames = pa.ListArray.from_arrays(offsets, tensors)
    return pa.record_batch({"video": [video], "prefix": frames})


class Prefix:
    """Reads what `write` has written, for several threads; stands where Shards do in `TrainingBatches`."""

    def __init__(
        self,
        plan: PrefixPlan,
        cache: ShardCache | None = None,
    ) -> None:
        self._store = Store(plan.folder)
        self._files = ArrowFiles(self._store, cache or ShardCache())
        self._names: dict[int, FileName] = {}

        # Of each video the number of its file, and its row there.
        self._places: dict[str, tuple[int, int]] = {}
        for number, videos in enumerate(plan.groups):
            for row, video in enumerate(videos):
                self._places[video] = (number, row)

    def num_frames(self, video: str) -> int:
        """How many frames of a video are kept: all that are stored."""
        return len(self._frames(video))

    def frames(
        self,
        video: str,
        indices: list[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The hidden states of the frames at `indices`, or of all; into `out`, if given.

        Returns [F, L, D], as the bits of bf16 (uint16) or float32.
        """
        tensors = self._frames(video)
        values = tensors.storage.flatten().to_numpy()
        frames = values.reshape(-1, *tensors.type.shape)  # a view of the file
        return pick(frames, indices, out)

    def prefetch(self, videos: Iterable[str]) -> None:
        """Begin to fetch the files of videos that will be read soon; returns at once."""
        if self._store.is_local:
            return

        # Each file once, in the order in which they are needed.
        names: dict[int, FileName] = {}
        for video in videos:
            number, _ = self._places[video]
            names[number] = self._name(number)
        self._files.prefetch(list(names.values()))

    @staticmethod
    def tensor(frames: np.ndarray) -> torch.Tensor:
        """bfloat16 or float32 [..., L, D]"""
        tensor = torch.from_numpy(frames)
        if frames.dtype == np.uint16:
            return tensor.view(torch.bfloat16)
        return tensor

    def _frames(self, video: str) -> pa.FixedShapeTensorArray:
        number, row = self._places[video]
        batch = self._files.batch(self._name(number), row)
        return batch.column("prefix").values

    def _name(self, number: int) -> FileName:
        """The file of a number, and what its sidecar says of it, which is read once."""
        if number not in self._names:
            content = self._store.read(_sidecar_name(number))
            sidecar = json.loads(content)
            self._names[number] = FileName(_file_name(number), sidecar["sha256"])
        return self._names[number]
