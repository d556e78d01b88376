"""The annotation table: one row per caption, and what a reader has to say about the files it read."""

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vopcore.datasets.errors import Line, Problem
from vopcore.datasets.match import VideoFiles

# a sentence and the stretch of its video that it describes, in seconds of the video file
SENTENCES = pa.list_(pa.struct([("sentence", pa.string()), ("start", pa.float64()), ("end", pa.float64())]))
ANNOTATIONS = pa.schema(
    [
        ("split", pa.string()),  # train | val | test
        # unique id of a moment; two moments of one file are two videos
        ("video", pa.string()),
        ("path", pa.string()),  # absolute path of the video file; null: no file found
        ("start", pa.float64()),  # seconds; null: from the beginning
        ("end", pa.float64()),  # seconds; null: to the end
        ("caption", pa.string()),
        # what the caption was joined from, where it is known when each happens
        ("sentences", SENTENCES),
    ]
)
SPLITS = ("train", "val", "test")
MAX_WORDS = 1000  # the longest caption of the seven benchmarks has about 450 words

# values that are Python objects before they become a piece of an Arrow column
CHUNK = 2**16


class Sentence(NamedTuple):
    """A sentence of a paragraph and when it happens, in seconds of the video file."""

    sentence: str
    start: float
    end: float


class Column:
    """A column that grows value by value; only the last CHUNK of them are Python objects."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._pieces: list[pa.Array] = []
        self._values: list[object] = []

    def append(self, value: object) -> None:
        self._values.append(value)
        if len(self._values) == CHUNK:
            self._flush()

    def array(self) -> pa.ChunkedArray:
        self._flush()
        return pa.chunked_array(self._pieces, self._kind)

    def _flush(self) -> None:
        self._pieces.append(pa.array(self._values, self._kind))
        self._values = []


@dataclass
class Reading:
    """What a reader gathers, in columns: moments in the files' order, their captions, and problems.

    `files` are those that videos are looked up in: by any of their names, or, with `by_path`, as paths below
    the videos' folder. Captions added to a (split, video) that is already there join it, so the captions of
    a video are consecutive.
    """

    files: VideoFiles
    by_path: bool = False
    problems: list[Problem] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._number_of: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        self._num_moments = 0
        self._moments = {name: Column(ANNOTATIONS.field(name).type) for name in MOMENT_COLUMNS}
        self._captions = Column(pa.string())
        self._sentences = Column(SENTENCES)
        self._moment_of_caption = array("q")

    @property
    def is_empty(self) -> bool:
        """Whether no caption was added."""
        return self._num_moments == 0

    def problem(self, where: Line, what: str) -> None:
        """Record what is wrong at a place of the user's files."""
        self.problems.append(Problem(str(where.file), where.number, what))

    def absent(self, path: object, split: str) -> None:
        """Record that the file of a split is missing."""
        self.problems.append(Problem(str(path), None, f"not there: no {split} split"))

    def add(
        self,
        split: str,
        video: str,
        captions: Iterable[str],
        where: Line,
        names: Sequence[str] = (),
        start: float | None = None,
        end: float | None = None,
        source: str | None = None,
        sentences: Sequence[Sentence] = (),
    ) -> None:
        """Adds the captions of a video.

        names: what its file may be called, best first (default: the id). source: the film or longer video it
        was cut from, where that is known. sentences: what each caption was joined from.
        """
        names = names or (video,)
        is_inside = all(is_safe(name) for name in (video, *names))
        if not is_inside:
            self.problem(
                where,
                f"id {video!r} refused: it is no name below the videos' folder",
            )
            return

        usable = [caption for caption in captions if self._is_caption(caption, video, where)]
        if not usable:
            self.problem(where, f"video {video!r} left out: no caption")
            return

        number = self._number_of[split].get(video)
        if number is None:
            path = self._path(video, names, where)
            number = self._add_moment(
                split,
                video,
                path,
                start,
                end,
            )

        # the column tells "not known" (null) from a list, which is never empty
        timed = [sentence._asdict() for sentence in sentences] or None
        for caption in usable:
            self._captions.append(caption)
            self._sentences.append(timed)
            self._moment_of_caption.append(number)
        if source:
            self.sources[video] = source

    def _add_moment(
        self,
        split: str,
        video: str,
        path: str | None,
        start: float | None,
        end: float | None,
    ) -> int:
        number = self._num_moments
        self._num_moments += 1
        self._number_of[split][video] = number

        values = (split, video, path, start, end)
        for name, value in zip(MOMENT_COLUMNS, values, strict=True):
            self._moments[name].append(value)
        return number

    def _is_caption(
        self,
        caption: str,
        video: str,
        where: Line,
    ) -> bool:
        if not isinstance(caption, str):
            self.problem(
                where,
                f"caption of {video!r} left out: it is {type(caption).__name__}, not text",
            )
            return False
        if not is_text(caption):
            self.problem(
                where,
                f"caption of {video!r} left out: half of a surrogate pair is no text",
            )
            return False
        if not caption or caption.isspace():
            self.problem(where, f"empty caption of {video!r} left out")
            return False

        # a word and the space behind it are two characters at least
        if len(caption) > 2 * MAX_WORDS:
            num_words = len(caption.split())
            if num_words > MAX_WORDS:
                self.problem(
                    where,
                    f"caption of {video!r} has {num_words} words; the tokenizer will cut it",
                )
        return True

    def _path(
        self,
        video: str,
        names: Sequence[str],
        where: Line,
    ) -> str | None:
        """The file of a video; what is odd about it is a problem."""
        paths = self.files.at(names) if self.by_path else self.files.find(names)
        if not paths:
            # a missing file is counted by who reads the table; here only a likely slip is told
            near_name = self.files.near(names)
            if near_name is not None:
                self.problem(where, f"no file for {video!r}: {near_name}")
            return None

        best = paths[0]
        if len(paths) > 1:
            others = ", ".join(paths[1:])
            self.problem(
                where,
                f"{len(paths)} files for {video!r}: took {best}, not {others}",
            )
        if not is_text(best):
            self.problem(
                where,
                f"the file of {video!r} is left out, rename it: {best!r} is not UTF-8",
            )
            return None
        return best

    def table(self, layout: str) -> pa.Table:
        """The ANNOTATIONS table; `layout` and the problems travel in its schema's metadata."""
        columns = {name: column.array() for name, column in self._moments.items()}
        captions = {"caption": self._captions.array(), "sentences": self._sentences.array()}

        # captions of a video stand together, wherever in the files they were
        moment_of_caption = np.frombuffer(self._moment_of_caption, np.int64)
        if (np.diff(moment_of_caption) < 0).any():
            order = np.argsort(moment_of_caption, kind="stable")
            moment_of_caption = moment_of_caption[order]
            rows = pa.array(order)
            captions = {name: column.take(rows) for name, column in captions.items()}

        # a moment is repeated for each of its captions
        if len(moment_of_caption) > self._num_moments:
            rows = pa.array(moment_of_caption)
            columns = {name: column.take(rows) for name, column in columns.items()}

        self._tell_of_links()
        metadata = {
            "layout": layout,
            "problems": json.dumps([asdict(problem) for problem in self.problems]),
            "sources": json.dumps(self.sources),
        }
        return pa.table(columns | captions, schema=ANNOTATIONS).replace_schema_metadata(metadata)

    def _tell_of_links(self) -> None:
        links = self.files.links_left_out
        if not links:
            return
        what = (
            f"{len(links)} links lead out of the videos' folder and are left"
            " out; data.follow_links=true follows them"
        )
        self.problems.append(Problem(links[0], None, what))


MOMENT_COLUMNS = ("split", "video", "path", "start", "end")


def is_safe(name: str) -> bool:
    """Whether an id, taken as a path, stays inside the folder it is looked up in."""
    if not name or name.isspace():
        return False
    if "\0" in name or name.startswith("/"):
        return False

    # a million ids are asked: most hold no ".." and are not split
    if ".." in name and ".." in name.split("/"):
        return False
    return is_text(name)


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON's escapes and the file system may hand out half characters."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def layout(table: pa.Table) -> str:
    """Which of the known layouts the reader took, e.g. "CLIP4Clip"."""
    return table.schema.metadata[b"layout"].decode()


def problems(table: pa.Table) -> list[Problem]:
    """What was wrong in the annotation files and did not stop the reader."""
    return [Problem(**problem) for problem in json.loads(table.schema.metadata[b"problems"])]


def sources(table: pa.Table) -> dict[str, str]:
    """Video ids to the film or longer video each was cut from, where the annotations say it."""
    return json.loads(table.schema.metadata[b"sources"])
