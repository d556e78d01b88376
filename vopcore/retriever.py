"""From frames and captions to vectors, and from vectors to similarities.

Pooling `mean` (CLIP4Clip, VoP): the mean of the normalised frame features. `query_aware` (Cross-Modal
Adapter, 3.1): each text weighs the frames itself, by a softmax over `text . frame / 5` of features that
are not normalised.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vopcore.clip import (
    CLIP,
    encode_from,
    encode_prefix,
    encode_text,
    encode_video,
    first_tuned_layer,
    keep_in_bf16,
    keep_in_eval,
    model_name,
    normalisation,
    stop_dropping,
    thaw,
    towers,
)

Pooling = Literal["mean", "query_aware"]
Precision = Literal["fp32", "bf16"]
TEMPERATURE = 5.0  # of the query-aware softmax
TEXTS, PAIRS = 256, 2**20  # a block: at most so many texts, and (text, frame) pairs: 4 MiB in fp32


class Retriever(nn.Module):
    """A CLIP, tuned or not, that compares captions with videos.

    The frozen CLIP stays in eval mode whatever `train` says; only the modules of the method follow.
    """

    clip: CLIP
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: CLIP,
        pooling: Pooling | None = None,
        learn_scale: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        """pooling: None is what the tuned weights were saved with, or `mean`. learn_scale: tune
        logit_scale too. precision: `bf16` computes the towers under autocast, over frozen weights kept in
        bf16; tuned parameters, features and similarities stay in fp32."""
        super().__init__()
        self.precision = precision
        tuning = getattr(clip, "tuning", None)
        self.pooling = pooling or (tuning and tuning.pooling) or "mean"
        if self.pooling not in ("mean", "query_aware"):
            raise ValueError(f"pooling: {pooling} is neither mean nor query_aware")
        self.clip = clip
        if tuning is None:  # else `tune` has done it, before the method brought dropout of its own
            stop_dropping(clip)
        if learn_scale:
            thaw([clip.logit_scale])
        if precision == "bf16":
            keep_in_bf16(clip)
        device = clip.logit_scale.device  # where the clip is already, pixels are normalised too
        for name, value in zip(("mean", "std"), normalisation(clip), strict=True):
            self.register_buffer(name, 255 * value.view(3, 1, 1).to(device), persistent=False)

    def train(self, mode: bool = True) -> "Retriever":
        """As ever, but nothing drops patches from the frozen CLIP."""
        super().train(mode)
        keep_in_eval(self.clip)
        return self

    def forward(self, frames: Tensor, mask: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`video` and `text` in one call, for DistributedDataParallel: -> text [N, D], video [B, F, D]."""
        return self.text(tokens), self.video(frames, mask)

    def text(self, tokens: Tensor) -> Tensor:
        """tokens Int [N, L] -> Float32 [N, D], not normalised."""
        with self._autocast():
            return at_least_fp32(encode_text(self.clip, tokens))

    def video(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """frames UInt8 [B, F, 3, H, W], mask Bool [B, F] (True: a real frame; None: all) -> [B, F, D].

        Or frames Float [B, F, L, width]: what `prefix` made of them. One Float32 feature per frame, not
        normalised; those of padding mean nothing, `similarity` leaves them out.
        Raises ValueError if dtype, size or number of frames are not what the CLIP was built or tuned for.
        """
        if frames.dim() == 4:
            x = frames.to(self.mean.dtype)
            with self._autocast():
                return at_least_fp32(encode_from(self.clip, x, mask, first_tuned_layer(self.clip)))
        self._check(frames)
        with self._autocast():
            return at_least_fp32(encode_video(self.clip, self._normalised(frames), mask))

    @torch.no_grad()
    def prefix(self, frames: Tensor, layer: int) -> Tensor:
        """frames UInt8 [N, 3, H, W] -> what enters vision block `layer`, Float [N, L, width]."""
        with self._autocast():
            return encode_prefix(self.clip, self._normalised(frames), layer)

    def similarity(self, text: Tensor, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """text [N, D], video [B, F, D], mask Bool [B, F] -> cosines Float32 [N, B]: a row per text.

        A text or a video whose feature is zero is alike to nothing: 0 with both poolings.
        Raises ValueError for a video without one real frame.
        """
        if mask is not None and not mask.any(dim=1).all():
            row = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"video {row} of {len(mask)} has no real frame in its mask")
        return self.compare(text, video, mask)

    def compare(self, text: Tensor, video: Tensor, mask: Tensor | None) -> Tensor:
        """`similarity` of videos that are known to have a real frame: asking a GPU would stop the host."""
        compare = mean_similarity if self.pooling == "mean" else query_aware_similarity
        with torch.autocast(text.device.type, enabled=False):
            return compare(text.float(), video, mask)

    def vectors(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """What a gallery keeps of videos [B, F, D], enough for `rank`.

        `mean`: their unit vectors [B, D]. `query_aware`: their frame features [B, F, D], padding zeroed.
        """
        if self.pooling == "mean":
            return unit_vectors(video, mask)
        return video.float() if mask is None else video.float().masked_fill(~mask.unsqueeze(-1), 0)

    def rank(self, text: Tensor, gallery: Tensor) -> Tensor:
        """text [N, D], gallery: `vectors` of V videos -> their `similarity` [N, V]."""
        if self.pooling == "mean":
            return F.normalize(text, dim=-1) @ gallery.T
        return self.similarity(text, gallery, gallery.any(dim=-1))

    def _normalised(self, frames: Tensor) -> Tensor:
        dtype = towers(self.clip).vision.dtype
        if dtype != torch.bfloat16:
            return ((frames.to(self.mean.dtype) - self.mean) / self.std).to(dtype)

        # Computed in fp32 inside one kernel that reads uint8 and writes the tower's dtype.
        pixels = torch.empty(frames.shape, dtype=dtype, device=frames.device)
        return torch.addcmul(-self.mean / self.std, frames, 1 / self.std, out=pixels)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.mean.is_meta:  # counted, not computed
            return nullcontext()
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _check(self, frames: Tensor) -> None:
        size = towers(self.clip).vision.image_size
        if frames.dtype != torch.uint8 or frames.dim() != 5 or tuple(frames.shape[2:]) != (3, *size):
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; "
                f"{model_name(self.clip)} reads torch.uint8 [B, F, 3, {size[0]}, {size[1]}]"
            )
        tuning = getattr(self.clip, "tuning", None)
        if tuning and tuning.fixed_frames and frames.shape[1] != tuning.frames:
            raise ValueError(
                f"{tuning.name} was tuned with {tuning.frames} frames per video and was given "
                f"{frames.shape[1]}: sample {tuning.frames} (pad shorter videos, with a mask) or tune again"
            )


def at_least_fp32(features: Tensor) -> Tensor:
    """Half precision raised to fp32; other features as they are."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def mean_similarity(text: Tensor, video: Tensor, mask: Tensor | None) -> Tensor:
    """Cosine of each text and the mean of a video's normalised frame features."""
    return F.normalize(text, dim=-1) @ unit_vectors(video, mask).T


def unit_vectors(video: Tensor, mask: Tensor | None) -> Tensor:
    """video [B, F, D], mask Bool [B, F] -> Float32 [B, D]: the mean of a video's normalised frame features,
    normalised; so it does not ask by how many frames their sum is divided."""
    pooled = [F.normalize(frames, dim=-1).sum(dim=1) for frames, _ in _blocks(video, mask)]
    return F.normalize(torch.cat(pooled), dim=-1)


def query_aware_similarity(text: Tensor, video: Tensor, mask: Tensor | None) -> Tensor:
    """cos(t, v) with v = sum_j w_j f_j and w = softmax_j(t . f_j / 5), without forming a v per pair.

    `<t, v> = w . a` with `a_j = t . f_j`, and `|v|^2 = w^T G w` with the video's Gram matrix G [F, F].
    Blocks of texts and videos bound the memory: a few times 4 MiB beside the arguments and the result.
    """
    columns = []
    for frames, real in _blocks(video, mask):
        gram = frames @ frames.mT
        columns.append(torch.cat([_query_aware(part, frames, gram, real) for part in text.split(TEXTS)]))
    lengths = text.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(text.dtype).tiny)
    return torch.cat(columns, dim=1) / lengths


def _query_aware(text: Tensor, video: Tensor, gram: Tensor, mask: Tensor | None) -> Tensor:
    """text [N, D], video [B, F, D], gram [B, F, F] -> |t| cos(t, v) [N, B]."""
    alike = (text @ video.flatten(0, 1).T).unflatten(1, video.shape[:2]).transpose(0, 1)  # [B, N, F]
    scores = alike / TEMPERATURE
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    weights = scores.softmax(dim=-1)
    length = ((weights @ gram) * weights).sum(dim=-1)
    return ((weights * alike).sum(dim=-1) * length.clamp(min=torch.finfo(length.dtype).tiny).rsqrt()).T


def _blocks(video: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Videos a few at a time, in fp32, zeros in the place of padding; their masks."""
    size = max(1, PAIRS // (TEXTS * video.shape[1]))
    masks = [None] * len(video) if mask is None else mask.split(size)
    for frames, real in zip(video.split(size), masks, strict=False):
        yield frames.float() if real is None else frames.float().masked_fill(~real.unsqueeze(-1), 0), real
