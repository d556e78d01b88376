"""`--where`: which videos a search looks at, as a condition in SQL over their names, dates and lengths.

SQLite reads the condition, so its syntax, its quoting and its LIKE hold, with every engine alike. It runs
over a table in memory and may do nothing but read it.
"""

import re
import sqlite3
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath

import numpy as np

from vopcore.index.table import IndexedVideo

COLUMNS = ("video", "folder", "name", "date", "size", "duration")
EXAMPLE = "folder = 'holidays/2026' AND date >= '2026-07-01'"
MAX_STEPS = 2000  # times 100,000 of SQLite's virtual instructions: seconds; LIKE can be made to take forever
MAX_LETTERS = 10_000
ALLOWED = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}
# Texts and names in quotes; one that is not closed goes on to the end.
QUOTED = re.compile(r"""'[^']*('|$)|"[^"]*("|$)|`[^`]*(`|$)|\[[^\]]*(\]|$)""")
HARMLESS_FUNCTIONS = {
    "abs", "coalesce", "date", "glob", "ifnull", "instr", "length", "like", "lower", "max", "min", "nullif",
    "replace", "round", "strftime", "substr", "substring", "trim", "ltrim", "rtrim", "upper",
}  # fmt: skip


class FilterError(ValueError):
    """A condition that is none; one line that shows what it could be."""


class VideoFilter:
    """The videos of an index, to be picked by a condition. Safe to use from several threads."""

    def __init__(self, videos: Sequence[IndexedVideo]) -> None:
        self._num_videos = len(videos)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "CREATE TABLE videos (number INTEGER PRIMARY KEY, video TEXT, folder TEXT, name TEXT, date TEXT, "
            "size INTEGER, duration REAL)"
        )
        rows = [_row(number, video) for number, video in enumerate(videos)]
        self._database.executemany(
            "INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._database.commit()
        self._database.execute("PRAGMA query_only = ON")
        self._database.set_authorizer(_authorise)

    def pick(
        self,
        where: str | None = None,
        folder: str | None = None,
        after: str | None = None,
        before: str | None = None,
    ) -> np.ndarray:
        """Bool [V]: the videos that meet all the conditions.

        where: SQL, such as EXAMPLE. folder: the video lies in it, at any depth. after, before: first and last
        date, as 2026-07-31. Raises FilterError.
        """
        conditions = ["1"]
        values: list[str] = []
        if where is not None:
            conditions.append(f"({_checked(where)}\n)")
        if folder:
            conditions.append("(folder = ? OR substr(folder, 1, length(?) + 1) = ? || '/')")
            values += [folder] * 3
        if after:
            conditions.append("date >= ?")
            values.append(_date(after))
        if before:
            conditions.append("date <= ?")
            values.append(_date(before))

        is_picked = np.zeros(self._num_videos, bool)
        is_picked[self._numbers(" AND ".join(conditions), values, where)] = True
        return is_picked

    def folders(self) -> list[str]:
        """Every folder that holds a video, sorted; "" is the root."""
        with self._lock:
            rows = self._database.execute("SELECT DISTINCT folder FROM videos ORDER BY folder").fetchall()
        return [folder for (folder,) in rows]

    def _numbers(
        self,
        condition: str,
        values: list[str],
        where: str | None,
    ) -> list[int]:
        steps = 0

        def count_step() -> int:
            nonlocal steps
            steps += 1
            return int(steps > MAX_STEPS)

        with self._lock:
            self._database.set_progress_handler(count_step, 100_000)
            try:
                rows = self._database.execute(
                    f"SELECT number FROM videos WHERE {condition}",
                    values,
                )
                return [number for (number,) in rows]
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                reason = "it takes too long" if "interrupted" in str(error) else str(error)
                raise FilterError(_message(where or condition, reason)) from None


def _row(
    number: int,
    video: IndexedVideo,
) -> tuple[int, str, str, str, str, int, float]:
    path = PurePosixPath(video.video)
    folder = str(path.parent)
    date = datetime.fromtimestamp(video.mtime).strftime("%Y-%m-%d")
    return number, video.video, "" if folder == "." else folder, path.name, date, video.size, video.duration


def _checked(where: str) -> str:
    """The condition, unless it is more or less than one condition."""
    if not where.strip():
        raise FilterError(_message(where, "it is empty"))

    if "\0" in where or len(where) > MAX_LETTERS:
        raise FilterError(_message(where, f"it has a null character or more than {MAX_LETTERS:,} letters"))

    # Whatever would leave the place where the condition stands.
    if not sqlite3.complete_statement(f"SELECT ({where}\n);"):
        raise FilterError(_message(where, "a quote or a comment is not closed"))
    code = QUOTED.sub("", where)
    if ";" in code:
        raise FilterError(_message(where, "one condition, without a semicolon"))
    if not _is_balanced(code):
        raise FilterError(_message(where, "its parentheses do not match"))
    return where


def _is_balanced(code: str) -> bool:
    """Whether each parenthesis that closes has been opened before, and the other way round."""
    depth = 0
    for letter in code:
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        if depth < 0:
            return False
    return depth == 0


def _date(text: str) -> str:
    try:
        return datetime.strptime(text, "%Y-%m-%d").strftime("%Y-%m-%d")
    except ValueError:
        raise FilterError(f"{text!r} is no date; write it as 2026-07-31") from None


def _authorise(
    action: int,
    first: str | None,
    second: str | None,
    *_: object,
) -> int:
    if action not in ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in HARMLESS_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _message(where: str, reason: str) -> str:
    shown = where if len(where) <= 100 else f"{where[:97]}..."
    return (
        f"where: {shown!r} is no filter: {reason}; a filter is a condition over {', '.join(COLUMNS)}, "
        f"for example {EXAMPLE}"
    )
