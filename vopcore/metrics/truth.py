"""Which caption belongs to which video and column, and in which blocks captions are compared with videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class MetricError(ValueError):
    """Similarities that mean nothing; one line naming the videos or captions they belong to."""


@dataclass(frozen=True)
class Truth:
    """The right answers of N captions of M videos in a gallery of V columns."""

    videos: list[str]  # [M], in the order of their first caption
    gallery: list[str]  # [V]
    video: Tensor  # Int64[N], each caption's place in `videos`
    column: Tensor  # Int64[M], each video's column in the gallery, -1: missing
    num_candidates: int  # videos there should be: those with captions, and the gallery's others

    @property
    def num_videos(self) -> int:
        return len(self.videos)

    @property
    def is_found(self) -> Tensor:
        """Bool[M]: whether the video is in the gallery."""
        return self.column >= 0

    @staticmethod
    def of(captions: Sequence[str], gallery: Sequence[str]) -> "Truth":
        """captions: [N], the video of each caption. Raises MetricError where nothing can be compared."""
        numbers = {video: number for number, video in enumerate(dict.fromkeys(captions))}
        columns = {video: column for column, video in enumerate(gallery)}
        if len(columns) < len(gallery):
            raise MetricError(f"{len(gallery) - len(columns)} videos stand twice in the gallery")
        if not numbers.keys() & columns.keys():
            raise MetricError(
                f"none of the split's {len(numbers)} videos is in the gallery of {len(gallery)}"
            )

        return Truth(
            videos=list(numbers),
            gallery=list(gallery),
            video=torch.tensor([numbers[video] for video in captions]),
            column=torch.tensor([columns.get(video, -1) for video in numbers]),
            num_candidates=len(numbers.keys() | columns.keys()),
        )

    def blocks(self, size: int) -> list[Tensor]:
        """Numbers of captions, Int64[n] each: whole videos at a time, about `size` similarities a block.

        The blocks depend on the split alone, not on how many workers share them.
        """
        order = self.video.argsort(stable=True)
        num_similarities = len(order) * len(self.gallery)
        num_blocks = -(-num_similarities // size)

        # a block ends where a video ends, at the first end after its even share of the captions
        ends = torch.bincount(self.video, minlength=self.num_videos).cumsum(0)
        even_shares = (torch.arange(1, num_blocks + 1) * len(order)) // num_blocks
        cuts = ends[torch.searchsorted(ends, even_shares)].unique()
        return list(order.tensor_split(cuts[:-1]))
