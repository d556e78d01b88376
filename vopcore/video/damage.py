"""What is broken in a video: noted where it happens, told in one line.

FFmpeg conceals most damage: the decoder gives a picture and writes an error to its log. That log, the
pictures' own flags and packets that cannot be decoded are the three ways in which damage shows.
"""

import re
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import numpy as np

# Kinds of damage told apart; a file made to waste memory could have millions.
MAX_REASONS = 100
SHOWN_REASONS = 3

LogLine = tuple[int, str, str]
"""Level, what wrote it, message."""

_log_lock = threading.Lock()
_log_users = 0
_level_of_others: int | None = None


class Damage:
    """Damage of one video. Positions count its packets in decoding order."""

    def __init__(self) -> None:
        self.file_problems: list[str] = []
        self._reasons: list[str] = []
        self._positions = array("q")
        self._reason_indices = array("B")

    def add(self, position: int, reason: str) -> None:
        """Notes that the packet at `position`, or its picture, is broken."""
        # Addresses and numbers differ each time; without them equal reasons are equal.
        reason = re.sub(
            r"0x[0-9a-f]+|-?\d+",
            "#",
            reason.strip(),
        )
        if reason not in self._reasons:
            if len(self._reasons) == MAX_REASONS:
                reason = self._reasons[-1]
            else:
                self._reasons.append(reason)

        index = self._reasons.index(reason)
        self._positions.append(position)
        self._reason_indices.append(index)

    def add_file_problem(self, problem: str) -> None:
        """Notes what concerns the file as a whole."""
        problem = " ".join(problem.split())
        if problem in self.file_problems:
            return
        if len(self.file_problems) < MAX_REASONS:
            self.file_problems.append(problem)

    def __bool__(self) -> bool:
        return bool(self.file_problems or self._positions)

    def causes(self) -> str | None:
        """All reasons in one line, None where nothing is broken."""
        file_problems = self.file_problems[:SHOWN_REASONS]
        packet_reasons = self._reasons[:SHOWN_REASONS]
        return "; ".join(file_problems + packet_reasons) or None

    def mark(self) -> int:
        """Where the list of broken packets stands; `forget_since` takes it back there."""
        return len(self._positions)

    def forget_since(self, mark: int) -> None:
        """Drop the broken packets noted after `mark`."""
        del self._positions[mark:]
        del self._reason_indices[mark:]

    def summary(
        self,
        needs: Sequence[tuple[int, int]],
        whole_file: bool,
    ) -> str | None:
        """One line on what may have reached frames, None if nothing may have.

        `needs` has, for each frame, the first and last position of the packets that it is decoded from.
        With `whole_file` damage elsewhere counts too, as everything was decoded.
        """
        positions = np.asarray(self._positions, np.int64)
        order = np.argsort(positions, kind="stable")
        positions = positions[order]
        reasons = np.asarray(self._reason_indices)[order]

        # Of all broken pictures, those among the ones that each frame is decoded from.
        firsts = [first for first, _ in needs]
        lasts = [last for _, last in needs]
        starts = np.searchsorted(
            positions,
            firsts,
            side="left",
        )
        stops = np.searchsorted(
            positions,
            lasts,
            side="right",
        )
        num_reached = int((stops > starts).sum())

        is_relevant = np.full(len(positions), whole_file)
        for start, stop in zip(starts, stops, strict=True):
            is_relevant[start:stop] = True

        problems = self.file_problems[:SHOWN_REASONS]
        if is_relevant.any():
            # One picture may be broken for several reasons.
            num_pictures = len(np.unique(positions[is_relevant]))
            pictures = "1 picture is" if num_pictures == 1 else f"{num_pictures} pictures are"
            commonest = self._commonest(reasons[is_relevant])
            problems.append(
                f"{pictures} broken, which may have reached {num_reached} of {len(needs)} frames: {commonest}"
            )

        return "; ".join(problems) or None

    def _commonest(self, reason_indices: np.ndarray) -> str:
        """The reasons that occur most often, in one line."""
        counts = Counter(reason_indices.tolist())
        commonest = counts.most_common(SHOWN_REASONS)
        return "; ".join(self._reasons[index] for index, _ in commonest)


@contextmanager
def decoder_log() -> Iterator[list[LogLine]]:
    """The errors that FFmpeg logs on this thread, as a list that grows and that the reader empties.

    Only for decoders without threads of their own: a thread of FFmpeg that logs while Python waits for it
    under the interpreter's lock would never end.
    """
    global _log_users, _level_of_others

    # The level is the process's: the first of several threads sets it, the last one sets it back.
    with _log_lock:
        if _log_users == 0:
            _level_of_others = av.logging.get_level()
            level = max(_level_of_others or av.logging.ERROR, av.logging.ERROR)
            av.logging.set_level(level)

            # Two videos may fail in the same words, one after the other.
            av.logging.set_skip_repeated(False)
        _log_users += 1

    try:
        with av.logging.Capture(local=True) as lines:
            yield lines
    finally:
        with _log_lock:
            _log_users -= 1
            if _log_users == 0:
                av.logging.set_level(_level_of_others)
