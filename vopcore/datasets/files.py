"""The annotation files a user holds: found by name, read with every flaw named by file and line."""

import csv
import io
import json
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vopcore.datasets.errors import DatasetError, Line
from vopcore.datasets.table import Reading

DEPTH = 2  # folders below the root in which a file is looked for


class AnnotationFiles:
    """Files by name in `root` and at most DEPTH folders below; raises DatasetError if `root` is no folder."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DatasetError(f"the annotations' folder {root} does not exist")
        self.root = root
        self._folders = []
        for name, subfolders, _ in os.walk(root, followlinks=True):
            folder = Path(name)
            self._folders.append(folder)

            # os.walk goes into what is left in the list, in its order
            subfolders.sort()
            depth = len(folder.relative_to(root).parts)
            if depth == DEPTH:
                subfolders.clear()

    def find(self, *names: str) -> Path | None:
        """The first of the names that there is.

        Raises DatasetError if two folders below the root hold it: nobody could tell which is meant.
        """
        for name in names:
            candidates = [folder / name for folder in self._folders]
            matches = [path for path in candidates if path.is_file()]
            if len(matches) > 1 and matches[0].parent != self.root:
                first, second = matches[:2]
                raise DatasetError(f"{first} and {second}: which is meant? point data.root at one folder")
            if matches:
                return matches[0]
        return None

    def choose(
        self,
        dataset: str,
        layouts: Mapping[str, Sequence[str]],
    ) -> tuple[str, list[Path]]:
        """The first layout (name -> files) that is complete, and its files.

        Raises DatasetError saying what was looked for and what of it is missing.
        """
        incomplete = []
        for name, files in layouts.items():
            paths = []
            missing = []
            for file in files:
                path = self.find(file)
                if path is None:
                    missing.append(file)
                else:
                    paths.append(path)
            if not missing:
                return name, paths
            incomplete.append(f"{name} (no {', '.join(missing)})")

        looked_for = "; ".join(incomplete)
        raise DatasetError(f"{self.root} holds no layout of {dataset} that is known: {looked_for}")


def read_text(path: Path, reading: Reading) -> str:
    """The file's text; bytes that are not UTF-8 become U+FFFD, their lines recorded."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    text = raw.decode("utf-8-sig", errors="replace")

    # the sign may also stand in the file itself, so each line is decoded to find those at fault
    if "\ufffd" in text:
        for number, line in enumerate(raw.split(b"\n"), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                reading.problem(
                    Line(path, number),
                    f"byte {error.start + 1} is not UTF-8; read as \ufffd",
                )
    return text


def read_lines(path: Path, reading: Reading) -> list[tuple[Line, str]]:
    """Lines that are not empty, with their places; only `\\n` ends a line, as captions hold odder
    characters.
    """
    lines = []
    for number, line in enumerate(read_text(path, reading).split("\n"), 1):
        if line.strip():
            lines.append((Line(path, number), line.rstrip("\r")))
    return lines


def read_ids(path: Path, reading: Reading) -> dict[str, Line]:
    """Ids of a list (`.txt`: one a line, `.json`: a flat list, `.npy`: texts), in order; repeated ones
    noted.
    """
    if path.suffix == ".json":
        listed = [(Line(path), str(video)) for video in read_json(path, reading, list)]
    elif path.suffix == ".npy":
        listed = [(Line(path), video) for video in read_names(path)]
    else:
        listed = [(where, line.strip()) for where, line in read_lines(path, reading)]
    return unique(listed, reading)


def unique(listed: Iterable[tuple[Line, str]], reading: Reading) -> dict[str, Line]:
    """Ids to the place where each stands first."""
    places: dict[str, Line] = {}
    for where, video in listed:
        if video in places:
            reading.problem(where, f"{video!r} stands there again; counted once")
        places.setdefault(video, where)
    return places


def read_names(path: Path) -> list[str]:
    """The texts of a `.npy` file; nothing is unpickled."""
    try:
        names = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(
            f"{path} is no array of texts ({error}); save it as a .txt, an id a line"
        ) from error

    texts = []
    for name in names.ravel().tolist():
        text = name.decode() if isinstance(name, bytes) else str(name)
        texts.append(text)
    return texts


def read_csv(
    path: Path,
    columns: Sequence[str],
    reading: Reading,
) -> list[tuple[Line, dict[str, str]]]:
    """Rows of a csv with a header; rows too short for `columns` are recorded and left out.

    Raises DatasetError if the header lacks one of `columns`.
    """
    text = io.StringIO(read_text(path, reading), newline="\n")
    rows = csv.reader(text, strict=True)
    header = [name.strip() for name in next(rows, [])]
    missing = [name for name in columns if name not in header]
    if missing:
        raise DatasetError(f"{path}:1: no column {' or '.join(missing)}; the header is {','.join(header)!r}")

    records = []
    try:
        for row in rows:
            where = Line(path, rows.line_num)
            if len(row) == len(header):
                record = dict(zip(header, row, strict=True))
                records.append((where, record))
            elif row:
                reading.problem(
                    where,
                    f"{len(row)} fields, not {len(header)}; left out",
                )
    except csv.Error as error:
        # a quote that is never closed, a field of more than 131,072 characters
        raise DatasetError(f"{path}:{rows.line_num}: not csv ({error})") from error
    return records


def read_json(
    path: Path,
    reading: Reading,
    kind: type,
) -> Any:  # noqa: ANN401 - JSON is anything
    """The value in the file, which must be a `kind`. Raises DatasetError naming file and line if it is not
    JSON.
    """
    try:
        value = json.loads(read_text(path, reading))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: not JSON ({error.msg}); is the file complete?") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: JSON nested too deeply") from error
    if not isinstance(value, kind):
        raise DatasetError(f"{path}: holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def entries(
    items: object,
    keys: Mapping[str, type],
    path: Path,
    reading: Reading,
) -> list[tuple[Any, ...]]:
    """The values of `keys` of each object of a list; objects that lack one are recorded and left out.

    Raises DatasetError if `items` is no list or none of its objects has all keys.
    """
    wanted = ", ".join(keys)
    if not isinstance(items, list):
        raise DatasetError(f"{path}: no list of objects with {wanted}")

    rows = []
    for number, item in enumerate(items):
        if has_all(item, keys):
            rows.append(tuple(item[key] for key in keys))
        else:
            reading.problem(Line(path), f"entry {number} left out: it lacks {wanted}")
    if not rows:
        raise DatasetError(f"{path}: none of its {len(items)} entries has {wanted}")
    return rows


def has_all(item: object, keys: Mapping[str, type]) -> bool:
    """Whether a JSON value is an object that holds each of `keys` with a value of its type."""
    if not isinstance(item, dict):
        return False
    return all(isinstance(item.get(key), kind) for key, kind in keys.items())


def lists_by_video(
    content: Mapping[Any, Any],
    path: Path,
    reading: Reading,
) -> dict[str, list[Any]]:
    """The entries of a dict of lists by video; others are recorded and left out.

    Raises DatasetError if none is a list.
    """
    lists = {}
    for video, value in content.items():
        if isinstance(value, list):
            lists[str(video)] = value
        else:
            reading.problem(
                Line(path),
                f"entry {video!r} left out: no list of captions",
            )
    if not lists:
        raise DatasetError(f"{path}: none of its {len(content)} entries is a list of captions")
    return lists


def read_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever was pickled, of plain types
    """A pickle of plain values (dict, list, text, numbers); anything that would run code is refused."""
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except (
        pickle.UnpicklingError,
        OSError,
        EOFError,
        IndexError,
        KeyError,
        ValueError,
        AttributeError,
    ) as error:
        raise DatasetError(
            f"{path}: not a pickle of plain values ({error}); is the file complete?"
        ) from error


class PlainUnpickler(pickle.Unpickler):
    """Builds plain values only: no class or function is looked up."""

    def find_class(
        self,
        module: str,
        name: str,
    ) -> Any:  # noqa: ANN401 - as in the base class
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
