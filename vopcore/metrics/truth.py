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
    # videos there should be: those with captions, and the gallery's others
    num_candidates: int

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
        number_of_video = {video: number for number, video in enumerate(dict.fromkeys(captions))}
        column_of_video = {video: column for column, video in enumerate(gallery)}
        num_repeated = len(gallery) - len(column_of_video)
        if num_repeated:
            raise MetricError(f"{num_repeated} videos stand twice in the gallery")
        if not number_of_video.keys() & column_of_video.keys():
            num_videos = len(number_of_video)
            raise MetricError(f"none of the split's {num_videos} videos is in the gallery of {len(gallery)}")

        video = [number_of_video[video] for video in captions]
        column = [column_of_video.get(video, -1) for video in number_of_video]
        candidates = number_of_video.keys() | column_of_video.keys()
        return Truth(
            videos=list(number_of_video),
            gallery=list(gallery),
            video=torch.tensor(video),
            column=torch.tensor(column),
            num_candidates=len(candidates),
        )

    def blocks(self, size: int) -> list[Tensor]:
        """Numbers of captions, Int64[n] each: whole videos at a time, about `size` similarities a block.

        The blocks depend on the split alone, not on how many workers share them.
        """
        order = self.video.argsort(stable=True)
        num_captions = len(order)
        num_similarities = num_captions * len(self.gallery)
        num_blocks = -(-num_similarities // size)  # rounded up

        # a block ends where a video ends, at the first end after its even share of the captions
        video_ends = torch.bincount(self.video, minlength=self.num_videos).cumsum(0)
        block_numbers = torch.arange(1, num_blocks + 1)
        even_shares = block_numbers * num_captions // num_blocks
        last_videos = torch.searchsorted(video_ends, even_shares)
        cuts = video_ends[last_videos].unique()

        # the last cut is the end, behind which there is nothing
        return list(order.tensor_split(cuts[:-1]))
