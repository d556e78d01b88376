"""What an index says of itself: which videos it holds, by which weights and in which windows.

`index.json` is written once, when the index is made; an index of other weights is refused by name.
"""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Literal

from vopcore.index.moments import WindowRule
from vopcore.retriever import Pooling
from vopcore.storage import Store
from vopcore.video import Interpolation, Resize

HEADER_FILE = "index.json"
VERSION = 1  # rises when an older program could not read the files

Engine = Literal["arrow", "lance"]


class BadIndexError(ValueError):
    """An index that is not there, cannot be read, or was made with something else; one line."""


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """`root`: the folder or URI whose videos are indexed. `dimension`: of the vectors.

    `backbone`, `tuned`: hashes of the frozen and of the tuned weights, as in the file of tuned weights.
    `method`, `model`: their names, for people. `decoder`: DECODER_VERSION. `resize`, `interpolation`: how
    pictures became frames; OpenAI's way in an index that does not say.
    """

    root: str
    engine: Engine
    dimension: int
    pooling: Pooling
    seconds: float
    every: float
    frames: int
    method: str
    model: str
    backbone: str
    tuned: str
    decoder: int
    version: int = VERSION
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"

    @property
    def rule(self) -> WindowRule:
        return WindowRule(self.seconds, self.every)


def read_header(store: Store) -> IndexHeader:
    """Raises BadIndexError where there is no index, or one that this program does not read."""
    try:
        if not store.exists(HEADER_FILE):
            raise BadIndexError(
                f"{store.folder}: no index here ({HEADER_FILE} is missing); "
                "make one with: python pipelines/index.py FOLDER"
            )
        values = json.loads(store.read(HEADER_FILE))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BadIndexError(f"{store.folder}/{HEADER_FILE}: cannot be read: {reason}") from None

    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise BadIndexError(
            f"{store.folder}: an index of version {version}, this program reads {VERSION}; index anew"
        )
    names = {field.name for field in fields(IndexHeader)}
    optional = {field.name for field in fields(IndexHeader) if field.default is not MISSING}
    unknown = set(values) - names
    missing = names - optional - set(values)
    if unknown or missing:
        odd = ", ".join(sorted(unknown | missing))
        raise BadIndexError(f"{store.folder}/{HEADER_FILE}: not as it was written ({odd})")
    return IndexHeader(**values)


def write_header(store: Store, header: IndexHeader) -> None:
    store.write(HEADER_FILE, json.dumps(asdict(header), indent=1).encode())


def check_same(store: Store, header: IndexHeader) -> None:
    """Refuse to go on with an index that was made of other videos or by other weights.

    Raises BadIndexError, one line that names what differs.
    """
    existing = asdict(read_header(store))
    wanted = asdict(header)
    for name, value in wanted.items():
        if existing[name] != value:
            raise BadIndexError(
                f"{store.folder}: this index has {name} {_short(existing[name])}, now it is {_short(value)}; "
                "choose another folder with index=..., or delete that one"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:12]}..."
