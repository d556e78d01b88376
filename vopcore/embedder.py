"""Captions and videos to vectors with one retriever, a chunk at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vopcore.retriever import Retriever

VIDEOS_AT_ONCE = 32
CAPTIONS_AT_ONCE = 256

Tokenize = Callable[[list[str]], Tensor]  # captions -> tokens Int64 [N, L]

# videos -> uint8 [B, F, 3, S, S], mask bool [B, F]
ReadFrames = Callable[[list[str]], tuple[Tensor, Tensor]]
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
        # no caption makes one empty chunk, which has the width that rows would have
        num_captions = max(len(captions), 1)
        for start in range(0, num_captions, CAPTIONS_AT_ONCE):
            chunk = list(captions[start : start + CAPTIONS_AT_ONCE])
            tokens = self._tokenize(chunk).to(self._device)
            vectors = self._retriever.text(tokens)
            chunks.append(vectors.float())
        return torch.cat(chunks)

    @torch.no_grad()
    def videos(
        self,
        videos: Sequence[str],
        read: ReadFrames,
        tell: Tell = tell_nobody,
    ) -> Tensor:
        """`Retriever.vectors` of the videos: Float32 [V, D], with `query_aware` [V, F, D].

        What pooling drops is never held for more than a chunk. [0, D] of no video.
        """
        if not videos:
            return self.texts([])

        chunks = []
        num_videos = len(videos)
        for start in range(0, num_videos, VIDEOS_AT_ONCE):
            end = min(start + VIDEOS_AT_ONCE, num_videos)
            features, mask = self.frames(videos[start:end], read)
            chunks.append(self._retriever.vectors(features, mask))
            tell(end, num_videos)
        return torch.cat(chunks)

    @torch.no_grad()
    def frames(self, videos: Sequence[str], read: ReadFrames) -> tuple[Tensor, Tensor]:
        """Features of the frames of a chunk of videos, Float32 [B, F, D]; which are real, bool [B, F]."""
        pixels, mask = read(list(videos))
        pixels = pixels.to(self._device)
        mask = mask.to(self._device)

        # None says that no frame is padding, which spares the towers a mask
        padding = None if mask.all() else mask
        features = self._retriever.video(pixels, padding)
        return features.float(), mask

    @property
    def _device(self) -> torch.device:
        return self._retriever.mean.device
