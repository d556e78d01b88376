"""What can be wrong with annotations: an error that stops, and problems recorded with their place."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class DatasetError(ValueError):
    """The annotations cannot be used; one line that names the file and what would be right."""


class Line(NamedTuple):
    """Where in the user's files something stands."""

    file: Path
    number: int | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong in the user's files that did not stop the reader."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.what}"
