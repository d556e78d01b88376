"""Query-aware similarities in two stages: an upper bound for every pair, the exact score where it can matter.

The similarity of a text t and a video with frames f_j (Cross-Modal Adapter, 3.1) is the cosine of t and
v = sum_j w_j f_j, w = softmax_j(t . f_j / temperature). Let c be the unit vector along the sum of the frames'
directions and b_j = f_j . c. As |v| >= v . c, and where all b_j are positive,

    cos(t, v) <= (t/|t|) . v / (v . c) = sum_j w_j a_j / sum_j w_j b_j <= max_j a_j / b_j,   a_j = t/|t| . f_j

because a ratio of sums is an average of the ratios (if it is positive; a negative one is bounded by 0 at the
worst). So the largest product with the scaled frames f_j / b_j bounds the score. These products are taken in
bfloat16, whose rounding is added to the bound: excluding a pair stays proven. A video with a b_j <= 0 is
never excluded.

Of the few pairs that this leaves, the average itself is a closer bound. Each product is known to within e, so
each weight, relative to the others, to within a factor r = exp(b_j |t| e / temperature); weights that are off
by r move the average q of products p by at most (r^2 - 1) P, P the mean of max(p_j - q, 0).

Exact scores are computed in fp64 and rounded to fp32, so that equal frames score the same bits wherever they
stand in a batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vopcore.metrics.count import Candidates
from vopcore.metrics.top import top_scores

# each factor is rounded to bfloat16 (2^-9), their products are summed in fp32, the sum is rounded: 3 * 2^-9,
# and a margin
ROUNDING = 2.0**-7

# of a frame's length along the centre: with less, the bound is of no use
LEAST_ALONG = 1e-3

# frames that cancel out give a cosine of 0, not NaN
SMALLEST_LENGTH = torch.finfo(torch.float32).tiny

# videos whose products are looked at while they are in the processor's cache
CHUNK = 512
MOST_SPREAD = 50.0  # beyond, weights may be anything

# fp64 numbers of texts, or of frames, that are gathered at once: 32 MiB
EXACT_NUMBERS = 2**22


class TwoStage:
    """Scores of N texts and V videos for `evaluate(..., bounded=)`.

    text: Float32[N, D]; video: Float32[V, F, D], zeros in the place of padding, as `Retriever.vectors` gives
    them; temperature: of the softmax. Every text and every video has a finite length above 0. For one thread
    at a time: blocks are computed in the same memory, one after the other.
    """

    def __init__(
        self,
        text: Tensor,
        video: Tensor,
        temperature: float,
    ) -> None:
        self._text = text
        self._video = video
        self._temperature = temperature
        self._is_real = video.any(dim=-1)  # Bool[V, F]
        unit_text = torch.nn.functional.normalize(text, dim=-1)
        self._unit_text = unit_text.bfloat16()

        # chunk by chunk: scaling takes several times the memory of the frames
        self._chunks: list[Tensor] = []  # BFloat16[F * v, D], scaled frames
        alongs = []
        slacks = []
        for start in range(0, len(video), CHUNK):
            some = slice(start, start + CHUNK)
            scaled = scaled_frames(video[some], self._is_real[some])
            self._chunks.append(scaled.frames.flatten(0, 1))
            alongs.append(scaled.along)
            slacks.append(scaled.slack)
        self._along = torch.cat(alongs)  # Float32[V, F]
        self._slack = torch.cat(slacks)  # Float32[V]
        self._room: list[Tensor] = []  # for products, one block after the other

    @staticmethod
    def fits(text: Tensor, video: Tensor) -> bool:
        """Whether the scores of all pairs are numbers; else `evaluate` names those that are none."""
        lengths = text.norm(dim=-1)
        is_finite = torch.isfinite(lengths).all() and torch.isfinite(video.sum())
        if not is_finite:
            return False

        has_direction = (lengths > 0).all()
        is_real = video.any(dim=-1)
        has_frame = is_real.any(dim=-1).all()
        return bool(has_direction and has_frame)

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Float32[P]: exact scores of the texts `rows` and the videos `columns`, Int64[P] each."""
        device = self._text.device
        rows = rows.to(device)
        columns = columns.to(device)
        scores = torch.empty(len(rows), device=device)

        # pairs of a video stand together, videos with about equally many pairs too: little padding
        grouped = pairs_by_video(columns)
        first_pair = grouped.num_pairs.cumsum(0) - grouped.num_pairs
        last = len(columns) - 1

        for start, end in self._batches(grouped.num_pairs):
            # counts rise, so the last video of the batch is the widest
            width = int(grouped.num_pairs[end - 1])
            place = torch.arange(width, device=device)
            num_pairs = grouped.num_pairs[start:end, None]
            is_pair = place < num_pairs  # Bool[v, width]

            # padding repeats some pair, and is dropped below
            places = first_pair[start:end, None] + place
            numbers = grouped.order[places.clamp(max=last)]
            videos = grouped.videos[start:end]
            exact = self._exact(rows[numbers], videos)

            real_numbers = numbers[is_pair]
            scores[real_numbers] = exact[is_pair]
        return scores

    def block(
        self,
        rows: Tensor,
        row_floor: Tensor,
        column_floor: Tensor,
        num_top: int,
    ) -> Candidates:
        """The exact scores of pairs whose bounds reach a floor."""
        device = self._text.device
        rows = rows.to(device)
        products = self._products(rows)
        bound = self._bound(products)
        row_floor = row_floor.to(device, bound.dtype)
        column_floor = column_floor.to(device, bound.dtype)

        likely = self._likely(rows, bound, num_top)
        if num_top:
            top_floor = self._top_floor(likely, bound, num_top)
            row_floor = torch.minimum(row_floor, top_floor)

        can_matter = bound >= row_floor[:, None]
        can_matter |= bound >= column_floor
        can_matter[likely.places, likely.columns] = False  # their scores are known
        places, columns = can_matter.nonzero(as_tuple=True)

        # a pair matters for its caption, for its video, or for both
        lower_floor = torch.minimum(row_floor[places], column_floor[columns])
        closer = self._closer_bound(rows, products, places, columns)
        can_matter = closer >= lower_floor
        places = places[can_matter]
        columns = columns[can_matter]
        scores = self.pairs(rows[places], columns)
        return Candidates(
            torch.cat([likely.places, places]),
            torch.cat([likely.columns, columns]),
            torch.cat([likely.scores, scores]),
        )

    def _likely(
        self,
        rows: Tensor,
        bound: Tensor,
        num_top: int,
    ) -> Candidates:
        """The exact scores of those pairs of each text whose `bound` Float32[n, V] is largest: twice
        `num_top`, or all where there are fewer.
        """
        num_rows, num_videos = bound.shape
        num_likely = min(2 * num_top, num_videos)
        place_of_row = torch.arange(num_rows, device=bound.device)
        places = place_of_row.repeat_interleave(num_likely)
        columns = places  # none
        if num_likely:
            columns = top_scores(bound, num_likely).columns.flatten()
        scores = self.pairs(rows[places], columns)
        return Candidates(places, columns, scores)

    @staticmethod
    def _top_floor(
        likely: Candidates,
        bound: Tensor,
        num_top: int,
    ) -> Tensor:
        """Float32[n]: a score that at least `num_top` videos of each text reach; below it none is on top."""
        scores = likely.scores.view(len(bound), -1)
        num_best = min(num_top, scores.shape[1])
        best = scores.topk(num_best, dim=1).values
        return best[:, -1]

    def _products(self, rows: Tensor) -> list[Tensor]:
        """BFloat16[n, F, v] for each chunk of videos: unit texts times scaled frames."""
        num_rows = len(rows)
        num_frames = self._video.shape[1]
        unit_text = self._unit_text[rows]

        # fresh memory costs a tenth of the product: the same is used for every block
        if not self._room or len(self._room[0]) < num_rows:
            self._room = []
            self._room = [unit_text.new_empty(num_rows, len(chunk)) for chunk in self._chunks]

        products = []
        for chunk, room in zip(self._chunks, self._room, strict=True):
            product = torch.mm(unit_text, chunk.T, out=room[:num_rows])
            products.append(product.unflatten(1, (num_frames, -1)))
        return products

    def _bound(self, products: list[Tensor]) -> Tensor:
        """Float32[n, V]: at least the score of each pair."""
        bound = self._slack.new_empty(len(products[0]), len(self._slack))
        start = 0
        for product in products:
            end = start + product.shape[2]

            # numbers above 0 are in the order of their bits, which are compared six times faster; of a pair
            # whose products are all negative it is only proven that its cosine is below 0
            largest = product.view(torch.int16).amax(dim=1).clamp_(min=0)
            torch.add(
                largest.view(torch.bfloat16),
                self._slack[start:end],
                out=bound[:, start:end],
            )
            start = end
        return bound

    def _closer_bound(
        self,
        rows: Tensor,
        products: list[Tensor],
        places: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Float64[P]: at least the score of each pair of a row `rows[places]` and a column."""
        pair_products = self._gathered(products, places, columns)  # p_j
        along = self._along[columns].double()  # b_j, 0 for padding
        slack = self._slack[columns].double()
        text_lengths = self._text.norm(dim=-1)
        length_of_pair = text_lengths[rows][places]
        sharpness = length_of_pair.double() / self._temperature

        # the weights of a_j / b_j in the average: w_j b_j, which add up to 1
        logits = sharpness[:, None] * along * pair_products
        logits = logits.masked_fill(along == 0, -torch.inf)
        weights = logits.softmax(dim=1) * along
        weights = weights / weights.sum(dim=1, keepdim=True)

        # P, by which other weights could move the average up
        average = (weights * pair_products).sum(dim=1)
        above = pair_products - average[:, None]
        excess = (weights * above.clamp(min=0)).sum(dim=1)

        # an average is below its largest number, whatever the weights
        spread = 2 * sharpness * along.amax(dim=1) * slack
        moved = average + torch.expm1(spread) * excess
        largest = pair_products.amax(dim=1)
        is_closer = (spread < MOST_SPREAD) & (moved < largest)
        bound = torch.where(is_closer, moved, largest)
        return bound.clamp(min=0) + slack

    def _gathered(
        self,
        products: list[Tensor],
        places: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """Float64[P, F]: the products of pairs; `places` are rows of the block."""
        num_frames = self._video.shape[1]
        num_pairs = len(places)
        gathered = self._slack.new_empty(num_pairs, num_frames, dtype=torch.float64)

        # pairs whose products stand in the same chunk are gathered together
        chunk_of_pair = columns // CHUNK
        by_chunk = chunk_of_pair.argsort(stable=True)
        sizes = torch.bincount(chunk_of_pair, minlength=len(products))
        pairs_of_chunk = by_chunk.split(sizes.tolist())

        first_column = 0
        for product, pairs in zip(products, pairs_of_chunk, strict=True):
            column_in_chunk = columns[pairs] - first_column
            place = places[pairs]
            gathered[pairs] = product[place, :, column_in_chunk].double()
            first_column += CHUNK
        return gathered

    def _batches(self, num_pairs: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of videos whose padded texts, and frames, are few enough to be held at once."""
        counts = num_pairs.tolist()
        num_frames, width = self._video.shape[1:]
        start = 0
        for number, count in enumerate(counts):
            # all videos of a batch are padded to its last one
            num_videos = number + 1 - start
            num_vectors = num_videos * max(count, num_frames)
            is_too_large = num_vectors * width > EXACT_NUMBERS
            if is_too_large and number > start:
                yield start, number
                start = number

        if counts:
            yield start, len(counts)

    def _exact(self, rows: Tensor, videos: Tensor) -> Tensor:
        """rows Int64[v, n], videos Int64[v] -> Float32[v, n]."""
        text = self._text[rows].double()  # [v, n, D]
        frames = self._video[videos].double()  # [v, F, D]
        is_padding = ~self._is_real[videos, None]  # [v, 1, F]

        products = text @ frames.mT  # [v, n, F]
        logits = products / self._temperature
        logits = logits.masked_fill(is_padding, -torch.inf)
        weights = logits.softmax(dim=-1)

        # t . v is the weighted sum of the products t . f_j
        product = (weights * products).sum(dim=-1)
        pooled = weights @ frames
        length = pooled.norm(dim=-1).clamp(min=SMALLEST_LENGTH)
        text_length = text.norm(dim=-1)
        cosine = product / (length * text_length)
        return cosine.float()


class PairsByVideo(NamedTuple):
    """P pairs of texts and v videos, in groups.

    order: Int64[P], numbers of pairs, those of a video together.
    videos: Int64[v], in the order of the groups. num_pairs: Int64[v], the size of each group, rising.
    """

    order: Tensor
    videos: Tensor
    num_pairs: Tensor


def pairs_by_video(columns: Tensor) -> PairsByVideo:
    """Groups pairs by their video, `columns` Int64[P]; small groups come first."""
    videos, group_of_pair, num_pairs = columns.unique(
        return_inverse=True,
        return_counts=True,
    )
    by_count = num_pairs.argsort(stable=True)

    # where each group goes, and with it each of its pairs
    num_groups = len(by_count)
    position_of_group = torch.empty_like(by_count)
    position_of_group[by_count] = torch.arange(num_groups, device=columns.device)
    position_of_pair = position_of_group[group_of_pair]
    order = position_of_pair.argsort(stable=True)
    return PairsByVideo(order, videos[by_count], num_pairs[by_count])


class ScaledFrames(NamedTuple):
    """What bounds are made of, of v videos.

    frames: BFloat16[F, v, D], f_j / b_j; padding repeats the first real frame. along: Float32[v, F], b_j, 0
    for padding. slack: Float32[v], what rounding may have taken from a bound; infinite where a b_j is not
    positive.
    """

    frames: Tensor
    along: Tensor
    slack: Tensor


def scaled_frames(video: Tensor, is_real: Tensor) -> ScaledFrames:
    """The frames of some videos, Float32[v, F, D], real ones Bool[v, F], as bounds need them."""
    # the first real frame in the place of padding: a maximum over frames stays what it is
    num_frames = video.shape[1]
    frame_numbers = torch.arange(num_frames, device=video.device)
    frame_numbers = frame_numbers.expand(is_real.shape)
    first_real = is_real.int().argmax(dim=1)
    frame_numbers = torch.where(is_real, frame_numbers, first_real[:, None])
    of_each_number = frame_numbers[:, :, None].expand(video.shape)
    frames = video.gather(1, of_each_number)

    # c, the direction that the frames have in common
    directions = torch.nn.functional.normalize(video, dim=-1)  # zero for padding
    centre = directions.sum(dim=1)
    centre = torch.nn.functional.normalize(centre, dim=-1)
    along = (frames * centre[:, None]).sum(dim=-1)  # b_j, [V, F]
    lengths = frames.norm(dim=-1)
    is_bounded = (along > LEAST_ALONG * lengths).all(dim=1)

    # a video that is not bounded is divided by 1, and never excluded
    divisors = along.where(is_bounded[:, None], 1.0)
    scaled = frames / divisors[:, :, None]
    longest = scaled.norm(dim=-1).amax(dim=1)
    slack = (ROUNDING * longest).where(is_bounded, torch.inf)

    scaled = scaled.transpose(0, 1).to(torch.bfloat16)
    along = divisors.masked_fill(~is_real, 0.0)
    return ScaledFrames(scaled.contiguous(), along, slack)
