"""An index: open it, ask it, and get the seconds of its videos that answer."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vopcore.index.filter import VideoFilter
from vopcore.index.header import Engine, IndexHeader, read_header
from vopcore.index.moments import WHOLE, ScoredWindow, Span, merge_windows, refine
from vopcore.index.table import ArrowMoments, Candidates, MomentTable
from vopcore.retriever import query_aware_similarity
from vopcore.storage import ShardCache, Store

CANDIDATES = 200  # windows that are looked at closely
PER_ANSWER = 20  # ... at least so many for each answer wanted
OVERLAP = 0.5  # an answer that shares more of its seconds with a better one is left out


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Seconds of a video that match. `best`: the time of the frame that matches best; `row`: the engine's
    number of the window that scored best, good until the index changes."""

    video: str
    start: float
    end: float
    score: float
    best: float
    row: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to look for. features: float32 [D], of a text as the encoder gives them, or a unit vector of an
    example. is_picked: bool [V], videos to look at. by_video: only the best answer of each video."""

    features: Tensor
    is_example: bool = False
    top: int = 10
    is_picked: np.ndarray | None = None
    by_video: bool = False


class Index:
    """The moments of a folder of videos. Searching and refreshing are safe from several threads."""

    def __init__(
        self,
        store: Store,
        header: IndexHeader,
        table: MomentTable,
    ) -> None:
        self.store = store
        self.header = header
        self.table = table
        self._lock = threading.RLock()
        self._filter: VideoFilter | None = None

    def refresh(self) -> bool:
        """See what others have changed; True if something has."""
        with self._lock:
            is_changed = self.table.refresh()
            if is_changed:
                self._filter = None
            return is_changed

    @property
    def filter(self) -> VideoFilter:
        """The videos by name, folder and date."""
        with self._lock:
            if self._filter is None:
                self._filter = VideoFilter(self.table.videos)
            return self._filter

    @torch.inference_mode()
    def search(self, question: Question) -> list[Answer]:
        """The best answers, best first. Neighbouring windows are one answer, its ends set by frames."""
        with self._lock:
            count = max(CANDIDATES, PER_ANSWER * question.top)
            while True:
                answers = self._answers(question, count)
                if len(answers) >= question.top or count >= self.table.num_moments:
                    return answers
                # All candidates lie in a few videos.
                count *= 4

    def _answers(self, question: Question, count: int) -> list[Answer]:
        unit = F.normalize(question.features, dim=-1)
        candidates = self.table.nearest(unit, count, question.is_picked)
        scores = self._scores(question, unit, candidates)

        windows = defaultdict(list)
        for place, score in enumerate(scores.tolist()):
            window = ScoredWindow(
                row=int(candidates.rows[place]),
                start=float(candidates.starts[place]),
                end=float(candidates.ends[place]),
                score=score,
            )
            windows[int(candidates.videos[place])].append(window)

        groups = []
        for video, found in windows.items():
            base = float(self.table.means[video] @ unit)
            merged = merge_windows(found, base)
            for group in merged[:1] if question.by_video else merged:
                best = max(group, key=lambda window: window.score)
                groups.append((best.score, video, base, group))
        groups.sort(key=lambda entry: -entry[0])

        answers: list[Answer] = []
        for _, video, base, group in groups:
            answer = self._refined(video, group, base, unit)
            if not any(_is_same(answer, better) for better in answers):
                answers.append(answer)
            if len(answers) == question.top:
                break
        return answers

    def _scores(
        self,
        question: Question,
        unit: Tensor,
        candidates: Candidates,
    ) -> Tensor:
        """float32 [K], computed from the stored vectors: the same numbers with every engine."""
        if self.header.pooling == "mean" or question.is_example:
            return (candidates.vectors.float() * unit).sum(dim=-1)
        if not len(candidates.rows):
            return torch.empty(0)
        frames = [self.table.window_frames(int(row)) for row in candidates.rows]
        padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        lengths = torch.tensor([len(features) for features in frames])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return query_aware_similarity(question.features[None], padded, mask)[0]

    def _refined(
        self,
        video: int,
        group: Sequence[ScoredWindow],
        base: float,
        unit: Tensor,
    ) -> Answer:
        """One answer from neighbouring windows of a video."""
        entry = self.table.videos[video]
        best = max(group, key=lambda window: window.score)
        is_whole = entry.duration <= WHOLE * self.header.seconds + 1e-3
        found = Span(group[0].start, max(window.end for window in group))
        bounds = found
        if not is_whole:
            every = self.header.every
            bounds = Span(max(0.0, found.start - every), min(entry.duration, found.end + every))

        times, features = self.table.frames_between(video, *bounds)
        cosines = F.normalize(features, dim=-1) @ unit
        span, best_time = refine(times, cosines.numpy(), base, found, bounds)
        if is_whole:
            # Its few frames tell which is best, not where the answer begins.
            span = bounds
        return Answer(
            video=entry.video,
            start=round(span.start, 3),
            end=round(span.end, 3),
            score=best.score,
            best=round(best_time, 3),
            row=best.row,
        )

    def like(self, video: str, start: float) -> Tensor:
        """The unit vector of an indexed window, to search for others like it. Raises KeyError."""
        with self._lock:
            return self.table.vector(self.table.window_at(self.number(video), start))

    def thumbnail(self, video: str, time: float) -> bytes:
        """The JPEG that shows what is nearest to `time`; each window has one. Raises KeyError."""
        with self._lock:
            return self.table.thumbnail(self.table.picture_at(self.number(video), time))

    def number(self, video: str) -> int:
        """A video's place in `table.videos`. Raises KeyError for one that is not indexed."""
        return self.table.numbers[video]


def _is_same(answer: Answer, better: Answer) -> bool:
    """Whether two answers share more than OVERLAP of the seconds they cover."""
    if answer.video != better.video:
        return False
    shared = min(answer.end, better.end) - max(answer.start, better.start)
    covered = max(answer.end, better.end) - min(answer.start, better.start)
    return shared > OVERLAP * covered


def open_index(uri: str, cache: ShardCache | None = None) -> Index:
    """An index in a folder or a bucket. Raises BadIndexError, one line."""
    store = Store(uri)
    header = read_header(store)
    return Index(store, header, open_table(store, header, cache))


def require_engine(engine: Engine) -> None:
    """Raises BadIndexError, one line that says what to install, where the engine is not installed."""
    if engine == "lance":
        from vopcore.index.lance import require_lancedb

        require_lancedb()


def open_table(
    store: Store,
    header: IndexHeader,
    cache: ShardCache | None = None,
) -> MomentTable:
    """The engine that the header names. Raises BadIndexError, also where LanceDB is not installed."""
    if header.engine == "lance":
        from vopcore.index.lance import LanceMoments

        return LanceMoments(store, header.dimension)
    return ArrowMoments(store, header.dimension, cache)
