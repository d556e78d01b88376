"""The indexes that a server answers from; tuned methods on one frozen CLIP share its text tower."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vopcore.index import Answer, Index, Question, open_index
from vopcore.index.encode import FrozenText, TextEncoder
from vopcore.index.model import local_model

LOOK_EVERY = 5.0  # seconds between looks whether an index has changed


@dataclass(frozen=True)
class ServedIndex:
    """An index by the name that requests give, and the text tower that belongs to it."""

    name: str
    index: Index
    encoder: TextEncoder


@dataclass(frozen=True, kw_only=True)
class Query:
    """One text, or one indexed window as an example, and which videos to look at."""

    text: str | None = None
    like_video: str | None = None
    like_start: float = 0.0
    top: int = 10
    where: str | None = None
    folder: str | None = None
    after: str | None = None
    before: str | None = None
    by_video: bool = False


class Catalogue:
    """Opens every index once. Answering is done by one thread at a time; see `SearchQueue`."""

    def __init__(self, uris: Sequence[str]) -> None:
        """Raises BadIndexError, one line, for an index that cannot be read."""
        self.indexes: dict[str, ServedIndex] = {}
        self._frozen: dict[str, FrozenText] = {}
        self._looked = time.monotonic()
        for uri in uris:
            self._open(uri)

    def _open(self, uri: str) -> None:
        index = open_index(uri)
        header = index.header
        folder = local_model(uri, header.tuned)
        frozen = self._frozen.get(header.backbone)
        encoder = TextEncoder(folder, frozen)
        self._frozen[header.backbone] = encoder.frozen

        name = _unique(
            Path(uri.split("?")[0].rstrip("/")).name or "index",
            self.indexes,
        )
        self.indexes[name] = ServedIndex(name, index, encoder)

    @property
    def num_backbones(self) -> int:
        """How many frozen text towers are in memory."""
        return len(self._frozen)

    def get(self, name: str | None) -> ServedIndex:
        """The index of that name, the first one where none is named. Raises ValueError."""
        if name is None:
            return next(iter(self.indexes.values()))
        if name not in self.indexes:
            raise ValueError(f"index: {name[:80]!r} is not served; there are: {', '.join(self.indexes)}")
        return self.indexes[name]

    def refresh(self) -> None:
        """See what `index.py` has changed in the meantime, every few seconds at most."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        for served in self.indexes.values():
            served.index.refresh()
        self._looked = time.monotonic()

    def search(
        self,
        served: ServedIndex,
        queries: Sequence[Query],
    ) -> list[list[Answer] | ValueError]:
        """The answers of each query, or what is wrong with it."""
        texts = [query.text for query in queries if query.text is not None]
        features: Iterator[Tensor] = iter(served.encoder.encode(texts) if texts else [])
        results: list[list[Answer] | ValueError] = []
        for query in queries:
            feature = next(features) if query.text is not None else None
            try:
                results.append(self._answer(served.index, query, feature))
            except KeyError:
                results.append(ValueError("like: that video is not in the index"))
            except ValueError as error:
                results.append(error)
        return results

    def _answer(
        self,
        index: Index,
        query: Query,
        feature: Tensor | None,
    ) -> list[Answer]:
        is_picked = None
        if query.where is not None or query.folder or query.after or query.before:
            is_picked = index.filter.pick(
                query.where,
                query.folder,
                query.after,
                query.before,
            )
        is_example = feature is None
        if feature is None:
            feature = index.like(query.like_video or "", query.like_start)
        question = Question(
            features=feature,
            is_example=is_example,
            top=query.top,
            is_picked=is_picked,
            by_video=query.by_video,
        )
        return index.search(question)

    def embed(self, served: ServedIndex, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of texts."""
        return torch.nn.functional.normalize(served.encoder.encode(texts), dim=-1).tolist()


def _unique(name: str, taken: dict[str, ServedIndex]) -> str:
    number = 2
    candidate = name
    while candidate in taken:
        candidate = f"{name}-{number}"
        number += 1
    return candidate
