"""Captions and videos to vectors with one retriever, a chunk at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vopcore.retriever import Retriever

VIDEOS_AT_ONCE = 32
CAPTIONS_AT_ONCE = 256

Tokenize = Callable[[list[str]], Tensor]  # captions -> tokens Int64 [N, L]
ReadFrames = Callable[[list[str]], tuple[Tensor, Tensor]]  # videos -> uint8 [B, F, 3, S, S], mask bool [B, F]
Tell = Callable[[int, int], None]  # hears how many of how many videos are embedded


def tell_nobody(num_embedded: int, num_videos: int) -> None:
    """Where nobody waits for progress."""


class Embedder:
    """Embeds on the device of its retriever."""

    def __init__(self, retriever: Retriever, tokenize: Tokenize) -> None:
        self._retriever = retriever
        self._tokenize = tokenize

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Float32 [N, D], not normalised; [0, D] of no caption."""
        chunks = []
        for start in range(0, max(len(captions), 1), CAPTIONS_AT_ONCE):
            tokens = self._tokenize(list(captions[start : start + CAPTIONS_AT_ONCE]))
            chunks.append(self._retriever.text(tokens.to(self._device)).float())
        return torch.cat(chunks)

    @torch.no_grad()
    def videos(self, videos: Sequence[str], read: ReadFrames, tell: Tell = tell_nobody) -> Tensor:
        """`Retriever.vectors` of the videos: Float32 [V, D], with `query_aware` [V, F, D]; what pooling drops
        is never held for more than a chunk. [0, D] of no video.
        """
        chunks = []
        for start in range(0, len(videos), VIDEOS_AT_ONCE):
            features, mask = self.frames(videos[start : start + VIDEOS_AT_ONCE], read)
            chunks.append(self._retriever.vectors(features, mask))
            tell(min(start + VIDEOS_AT_ONCE, len(videos)), len(videos))
        return torch.cat(chunks) if chunks else self.texts([])

    @torch.no_grad()
    def frames(self, videos: Sequence[str], read: ReadFrames) -> tuple[Tensor, Tensor]:
        """Features of the frames of a chunk of videos, Float32 [B, F, D]; which are real, bool [B, F]."""
        pixels, mask = read(list(videos))
        mask = mask.to(self._device)
        padding = None if mask.all() else mask
        return self._retriever.video(pixels.to(self._device), padding).float(), mask

    @property
    def _device(self) -> torch.device:
        return self._retriever.mean.device
