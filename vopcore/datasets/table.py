"""The annotation table: one row per caption, and what a reader has to say about the files it read."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from vopcore.datasets.errors import Line, Problem

ANNOTATIONS = pa.schema(
    [
        ("split", pa.string()),  # train | val | test
        ("video", pa.string()),  # unique id of a clip; two moments of one file are two clips
        ("path", pa.string()),  # absolute path of the video file; null: no file found
        ("start", pa.float64()),  # seconds; null: from the beginning
        ("end", pa.float64()),  # seconds; null: to the end
        ("caption", pa.string()),
    ]
)
SPLITS = ("train", "val", "test")
MAX_WORDS = 1000  # the longest caption of the seven benchmarks has about 450 words


@dataclass
class Reading:
    """What a reader gathers: clips in the field's order, and problems.

    `find` gives the files that go by one of some names, best first (see match.py). Captions added to a
    (split, video) that is already there join it, so the captions of a video are consecutive.
    """

    find: Callable[[list[str]], list[str]]
    problems: list[Problem] = field(default_factory=list)
    clips: dict[tuple[str, str], dict] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def problem(self, where: Line, what: str) -> None:
        self.problems.append(Problem(str(where.file), where.number, what))

    def absent(self, path: Path, split: str) -> None:
        self.problem(Line(path), f"not there: no {split} split")

    def add(
        self,
        split: str,
        video: str,
        captions: Iterable[str],
        where: Line,
        names: Iterable[str] = (),
        start: float | None = None,
        end: float | None = None,
        source: str | None = None,
    ) -> None:
        """Adds the captions of a clip.

        names: what its file may be called, best first (default: the id). source: the film or longer video it
        was cut from, where that is known.
        """
        names = list(names) or [video]
        if not all(is_safe(name) for name in [video, *names]):
            self.problem(where, f"id {video!r} refused: it is no name below the videos' folder")
            return
        kept = [caption for caption in captions if self._is_caption(caption, video, where)]
        if not kept:
            self.problem(where, f"video {video!r} left out: no caption")
            return
        if (split, video) not in self.clips:
            path = self._path(video, names, where)
            self.clips[split, video] = {"path": path, "start": start, "end": end, "captions": []}
        self.clips[split, video]["captions"] += kept
        if source:
            self.sources[video] = source

    def _is_caption(self, caption: str, video: str, where: Line) -> bool:
        if not isinstance(caption, str):
            self.problem(where, f"caption of {video!r} left out: it is {type(caption).__name__}, not text")
            return False
        if not is_text(caption):
            self.problem(where, f"caption of {video!r} left out: half of a surrogate pair is no text")
            return False
        if not caption.strip():
            self.problem(where, f"empty caption of {video!r} left out")
            return False
        if (num_words := len(caption.split())) > MAX_WORDS:
            self.problem(where, f"caption of {video!r} has {num_words} words; the tokenizer will cut it")
        return True

    def _path(self, video: str, names: list[str], where: Line) -> str | None:
        found = self.find(names)
        if len(found) > 1:
            others = ", ".join(found[1:])
            self.problem(where, f"{len(found)} files for {video!r}: took {found[0]}, not {others}")
        if found and not is_text(found[0]):
            self.problem(where, f"the file of {video!r} is left out, rename it: {found[0]!r} is not UTF-8")
            return None
        return found[0] if found else None

    def table(self, layout: str) -> pa.Table:
        """The ANNOTATIONS table; `layout` and the problems travel in its schema's metadata."""
        columns: dict[str, list] = {name: [] for name in ANNOTATIONS.names}
        for (split, video), clip in self.clips.items():
            n = len(clip["captions"])
            for name, value in [("split", split), ("video", video)]:
                columns[name] += [value] * n
            for name in ("path", "start", "end"):
                columns[name] += [clip[name]] * n
            columns["caption"] += clip["captions"]
        noted = json.dumps([asdict(problem) for problem in self.problems])
        said = {"layout": layout, "problems": noted, "sources": json.dumps(self.sources)}
        return pa.table(columns, schema=ANNOTATIONS).replace_schema_metadata(said)


def is_safe(name: str) -> bool:
    """Whether an id, taken as a path, stays inside the folder it is looked up in."""
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts
    return bool(name.strip()) and "\0" not in name and is_text(name) and not leaves


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON's escapes and the file system may hand out half characters."""
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
