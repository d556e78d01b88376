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

# A block of similarities: at most so many texts, and (text, frame) pairs: 4 MiB in fp32.
TEXTS = 256
PAIRS = 2**20


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
        # else `tune` has done it, before the method brought dropout of its own
        if tuning is None:
            stop_dropping(clip)
        if learn_scale:
            thaw([clip.logit_scale])
        if precision == "bf16":
            keep_in_bf16(clip)

        # Where the CLIP is already, pixels are normalised too.
        device = clip.logit_scale.device
        mean, std = normalisation(clip)
        for name, value in {"mean": mean, "std": std}.items():
            by_channel = value.view(3, 1, 1).to(device)
            self.register_buffer(name, 255 * by_channel, persistent=False)

    def train(self, mode: bool = True) -> "Retriever":
        """As ever, but nothing drops patches from the frozen CLIP."""
        super().train(mode)
        keep_in_eval(self.clip)
        return self

    def forward(
        self,
        frames: Tensor,
        mask: Tensor | None,
        tokens: Tensor,
    ) -> tuple[Tensor, Tensor]:
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
            layer = first_tuned_layer(self.clip)
            with self._autocast():
                features = encode_from(self.clip, x, mask, layer)
                return at_least_fp32(features)

        self._check(frames)
        with self._autocast():
            pixels = self._normalised(frames)
            features = encode_video(self.clip, pixels, mask)
            return at_least_fp32(features)

    @torch.no_grad()
    def prefix(self, frames: Tensor, layer: int) -> Tensor:
        """frames UInt8 [N, 3, H, W] -> what enters vision block `layer`, Float [N, L, width]."""
        with self._autocast():
            return encode_prefix(self.clip, self._normalised(frames), layer)

    def similarity(
        self,
        text: Tensor,
        video: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """text [N, D], video [B, F, D], mask Bool [B, F] -> cosines Float32 [N, B]: a row per text.

        A text or a video whose feature is zero is alike to nothing: 0 with both poolings.
        Raises ValueError for a video without one real frame.
        """
        if mask is not None:
            has_frames = mask.any(dim=1)
            if not has_frames.all():
                row = int((~has_frames).nonzero()[0])
                raise ValueError(f"video {row} of {len(mask)} has no real frame in its mask")
        return self.compare(text, video, mask)

    def compare(
        self,
        text: Tensor,
        video: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
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

        features = video.float()
        if mask is None:
            return features
        is_padding = ~mask.unsqueeze(-1)
        return features.masked_fill(is_padding, 0)

    def rank(self, text: Tensor, gallery: Tensor) -> Tensor:
        """text [N, D], gallery: `vectors` of V videos -> their `similarity` [N, V]."""
        if self.pooling == "mean":
            unit_text = F.normalize(text, dim=-1)
            return unit_text @ gallery.T

        # Padding is zeros there.
        is_real = gallery.any(dim=-1)
        return self.similarity(text, gallery, is_real)

    def _normalised(self, frames: Tensor) -> Tensor:
        dtype = towers(self.clip).vision.dtype
        if dtype != torch.bfloat16:
            centred = frames.to(self.mean.dtype) - self.mean
            return (centred / self.std).to(dtype)

        # Computed in fp32 inside one kernel that reads uint8 and writes the tower's dtype.
        pixels = torch.empty(
            frames.shape,
            dtype=dtype,
            device=frames.device,
        )
        offset = -self.mean / self.std
        factor = 1 / self.std
        return torch.addcmul(offset, frames, factor, out=pixels)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.mean.is_meta:  # counted, not computed
            return nullcontext()

        device = self.mean.device.type
        is_half = self.precision == "bf16"
        return torch.autocast(device, torch.bfloat16, enabled=is_half)

    def _check(self, frames: Tensor) -> None:
        height, width = towers(self.clip).vision.image_size
        frame_shape = tuple(frames.shape[2:])
        has_right_shape = frames.dim() == 5 and frame_shape == (3, height, width)
        if frames.dtype != torch.uint8 or not has_right_shape:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; "
                f"{model_name(self.clip)} reads torch.uint8 [B, F, 3, {height}, {width}]"
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


def mean_similarity(
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Cosine of each text and the mean of a video's normalised frame features."""
    unit_text = F.normalize(text, dim=-1)
    unit_video = unit_vectors(video, mask)
    return unit_text @ unit_video.T


def unit_vectors(video: Tensor, mask: Tensor | None) -> Tensor:
    """video [B, F, D], mask Bool [B, F] -> Float32 [B, D]: the mean of a video's normalised frame features,
    normalised; so it does not ask by how many frames their sum is divided."""
    pooled = []
    for frames, _ in _blocks(video, mask):
        unit_frames = F.normalize(frames, dim=-1)
        pooled.append(unit_frames.sum(dim=1))
    return F.normalize(torch.cat(pooled), dim=-1)


def query_aware_similarity(
    text: Tensor,
    video: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """cos(t, v) with v = sum_j w_j f_j and w = softmax_j(t . f_j / 5), without forming a v per pair.

    `<t, v> = w . a` with `a_j = t . f_j`, and `|v|^2 = w^T G w` with the video's Gram matrix G [F, F].
    Blocks of texts and videos bound the memory: a few times 4 MiB beside the arguments and the result.
    """
    columns = []
    for frames, real in _blocks(video, mask):
        gram = frames @ frames.mT
        parts = [_query_aware(part, frames, gram, real) for part in text.split(TEXTS)]
        columns.append(torch.cat(parts))

    # A text of length zero is similar to nothing, instead of NaN.
    smallest = torch.finfo(text.dtype).tiny
    lengths = text.norm(dim=-1, keepdim=True).clamp(min=smallest)
    return torch.cat(columns, dim=1) / lengths


def _query_aware(
    text: Tensor,
    video: Tensor,
    gram: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """text [N, D], video [B, F, D], gram [B, F, F] -> |t| cos(t, v) [N, B]."""
    num_videos_and_frames = video.shape[:2]
    products = text @ video.flatten(0, 1).T
    by_video = products.unflatten(1, num_videos_and_frames)
    alike = by_video.transpose(0, 1)  # [B, N, F]

    scores = alike / TEMPERATURE
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    weights = scores.softmax(dim=-1)

    squared_length = ((weights @ gram) * weights).sum(dim=-1)
    smallest = torch.finfo(squared_length.dtype).tiny
    inverse_length = squared_length.clamp(min=smallest).rsqrt()
    product = (weights * alike).sum(dim=-1)
    return (product * inverse_length).T


def _blocks(
    video: Tensor,
    mask: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Videos a few at a time, in fp32, zeros in the place of padding; their masks."""
    num_frames = video.shape[1]
    size = max(1, PAIRS // (TEXTS * num_frames))
    for start in range(0, max(len(video), 1), size):
        rows = slice(start, start + size)
        frames = video[rows].float()
        if mask is None:
            yield frames, None
            continue

        real = mask[rows]
        is_padding = ~real.unsqueeze(-1)
        yield frames.masked_fill(is_padding, 0), real
