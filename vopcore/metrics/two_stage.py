"""Query-aware similarities in two stages: an upper bound for every pair, the exact score where it can matter.

The similarity of a text t and a video with frames f_j (Cross-Modal Adapter, 3.1) is the cosine of t and
v = sum_j w_j f_j, w = softmax_j(t . f_j / temperature). Let c be the unit vector along the sum of the frames'
directions and b_j = f_j . c. As |v| >= v . c, and where all b_j are positive,

    cos(t, v) <= (t/|t|) . v / (v . c) = sum_j w_j a_j / sum_j w_j b_j <= max_j a_j / b_j,   a_j = t/|t| . f_j

because a ratio of sums is an average of the ratios (if it is positive; a negative one is bounded by 0 at the
worst). So the largest product with the scaled frames f_j / b_j bounds the score. These products are taken in
bfloat16, whose rounding is added to the bound: excluding a pair stays proven. A video with a b_j <= 0 is
never excluded.

Exact scores are computed in fp64 and rounded to fp32, so that equal frames score the same bits wherever they
stand in a batch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vopcore.metrics.top import top_scores

# each factor is rounded to bfloat16 (2^-9), their products are summed in fp32, the sum is rounded: 3 * 2^-9,
# and a margin
ROUNDING = 2.0**-7
EXACT_NUMBERS = 2**22  # fp64 numbers of texts, or of frames, that are gathered at once: 32 MiB


class TwoStage:
    """Scores of N texts and V videos for `evaluate(..., bounded=)`.

    text: Float32[N, D]; video: Float32[V, F, D], zeros in the place of padding, as `Retriever.vectors` gives
    them; temperature: of the softmax. Every text and every video has a finite length above 0.
    """

    def __init__(self, text: Tensor, video: Tensor, temperature: float) -> None:
        self._text = text
        self._video = video
        self._temperature = temperature
        self._is_real = video.any(dim=-1)  # Bool[V, F]
        self._unit_text = torch.nn.functional.normalize(text, dim=-1).bfloat16()
        self._scaled, self._slack = scaled_frames(video, self._is_real)

    @staticmethod
    def fits(text: Tensor, video: Tensor) -> bool:
        """Whether the scores of all pairs are numbers; else `evaluate` names those that are none."""
        lengths = text.norm(dim=-1)
        has_frame = video.any(dim=-1).any(dim=-1)
        is_finite = torch.isfinite(lengths).all() and torch.isfinite(video.sum())
        return bool(is_finite and (lengths > 0).all() and has_frame.all())

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Float32[P]: exact scores of the texts `rows` and the videos `columns`, Int64[P] each."""
        device = self._text.device
        rows = rows.to(device)
        columns = columns.to(device)
        scores = torch.empty(len(rows), device=device)

        # pairs of a video stand together, videos with about equally many pairs too: little padding
        order, videos, num_pairs = self._by_video(columns)
        first = num_pairs.cumsum(0) - num_pairs
        for start, end in self._chunks(num_pairs):
            width = int(num_pairs[end - 1])
            place = torch.arange(width, device=device)
            is_pair = place < num_pairs[start:end, None]  # Bool[v, width]
            numbers = order[(first[start:end, None] + place).clamp(max=len(order) - 1)]
            exact = self._exact(rows[numbers], videos[start:end])
            scores[numbers[is_pair]] = exact[is_pair]
        return scores

    def block(self, rows: Tensor, row_floor: Tensor, column_floor: Tensor, num_top: int) -> Tensor:
        """Float32[n, V]: exact scores where the bound reaches a floor, -inf elsewhere."""
        device = self._text.device
        rows = rows.to(device)
        bound = self._bound(rows)
        row_floor = row_floor.to(device, bound.dtype)
        column_floor = column_floor.to(device, bound.dtype)
        scores = torch.full_like(bound, -torch.inf)

        if num_top:
            # the best scores among the videos with the largest bounds: nothing below them is on top
            columns = top_scores(bound, min(2 * num_top, bound.shape[1])).columns
            likely = self.pairs(rows.repeat_interleave(columns.shape[1]), columns.flatten())
            best = likely.view(columns.shape).topk(min(num_top, columns.shape[1]), dim=1).values
            row_floor = torch.minimum(row_floor, best[:, -1])

        can_matter = (bound >= row_floor[:, None]) | (bound >= column_floor)
        places, columns = can_matter.nonzero(as_tuple=True)
        scores[places, columns] = self.pairs(rows[places], columns)
        return scores

    def _bound(self, rows: Tensor) -> Tensor:
        """Float32[n, V]: at least the score of each pair."""
        products = self._unit_text[rows] @ self._scaled.flatten(0, 1).T
        largest = products.unflatten(1, self._scaled.shape[:2]).amax(dim=1)
        return largest.float().clamp(min=0) + self._slack

    def _by_video(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(numbers of pairs Int64[P] by video, the videos Int64[v], pairs of each Int64[v], rising)."""
        videos, inverse, num_pairs = columns.unique(return_inverse=True, return_counts=True)
        by_count = num_pairs.argsort(stable=True)
        position = torch.empty_like(by_count)
        position[by_count] = torch.arange(len(by_count), device=columns.device)
        order = position[inverse].argsort(stable=True)
        return order, videos[by_count], num_pairs[by_count]

    def _chunks(self, num_pairs: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of videos whose padded texts, and frames, are few enough to be held at once."""
        counts = num_pairs.tolist()
        num_frames, width = self._video.shape[1:]
        start = 0
        for number, count in enumerate(counts):
            size = (number + 1 - start) * max(count, num_frames) * width
            if size > EXACT_NUMBERS and number > start:
                yield start, number
                start = number
        if counts:
            yield start, len(counts)

    def _exact(self, rows: Tensor, videos: Tensor) -> Tensor:
        """rows Int64[v, n], videos Int64[v] -> Float32[v, n]."""
        text = self._text[rows].double()  # [v, n, D]
        frames = self._video[videos].double()  # [v, F, D]
        alike = text @ frames.mT
        logits = (alike / self._temperature).masked_fill(~self._is_real[videos, None], -torch.inf)
        weights = logits.softmax(dim=-1)

        length = (weights @ frames).norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        cosine = (weights * alike).sum(dim=-1) / (length * text.norm(dim=-1))
        return cosine.float()


def scaled_frames(video: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
    """Frames f_j / b_j, bfloat16 [F, V, D], and what rounding may have taken from the bound, Float32[V].

    Padding repeats the first real frame. The slack is infinite where a b_j is not positive.
    """
    first_real = is_real.int().argmax(dim=1)
    numbers = torch.arange(video.shape[1], device=video.device).expand(is_real.shape)
    numbers = torch.where(is_real, numbers, first_real[:, None])
    frames = video.gather(1, numbers[:, :, None].expand(video.shape))

    directions = torch.nn.functional.normalize(video, dim=-1)  # zero for padding
    centre = torch.nn.functional.normalize(directions.sum(dim=1), dim=-1)
    along = (frames * centre[:, None]).sum(dim=-1)  # b_j, [V, F]
    is_bounded = (along > 1e-3 * frames.norm(dim=-1)).all(dim=1)

    scaled = frames / along.where(is_bounded[:, None], 1.0)[:, :, None]
    longest = scaled.norm(dim=-1).amax(dim=1)
    slack = (ROUNDING * longest).where(is_bounded, torch.inf)
    return scaled.transpose(0, 1).to(torch.bfloat16).contiguous(), slack
