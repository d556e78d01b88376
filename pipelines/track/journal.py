"""What MLflow has not taken yet: a JSON line per call, in order, and copies of files. Knows no mlflow."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """The calls of one run that are waiting, in a folder named by the run."""

    def __init__(self, folder: str, run: str) -> None:
        self._folder = Path(folder) / run
        self._lines = self._folder / "calls.jsonl"

    @property
    def is_empty(self) -> bool:
        return not self._lines.exists()

    def add(self, call: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Keep a call; its file or folder is copied, as it may be gone when it is delivered."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if call in ("file", "model"):
            copy = self._copy(Path(value["path"]))
            value = {**value, "path": str(copy)}

        line = json.dumps([call, value])
        with self._lines.open("a") as file:
            file.write(line + "\n")

    def _copy(self, path: Path) -> Path:
        # A folder for each copy: MLflow keeps the name, and names come several times.
        copy = self._folder / f"{time.time_ns()}" / path.name
        copy.parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy(path, copy)
        return copy

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """The calls in their order; one that a killed process left half written is skipped."""
        if self.is_empty:
            return

        text = self._lines.read_text()
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                call, value = json.loads(line)
                yield call, value

    def clear(self) -> None:
        """All calls are delivered."""
        shutil.rmtree(self._folder, ignore_errors=True)


def waiting(folder: str) -> list[str]:
    """The runs that have calls waiting."""
    journals = Path(folder).glob("*/calls.jsonl")
    return sorted(lines.parent.name for lines in journals)
