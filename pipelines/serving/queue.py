"""Queries in the order they came, a bounded number of them, answered several at a time by one thread."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipelines.serving.catalogue import Catalogue, Query, ServedIndex
from vopcore.index import Answer

MAX_WAITING = 2000  # queries; one more is told to come back
BATCH = 32  # texts that go through the tower at once

Result = TypeVar("Result")
Waiting = tuple[ServedIndex, Query, "asyncio.Future[list[Answer]]"]


class QueueFullError(RuntimeError):
    """More queries are waiting than the server takes."""


class SearchQueue:
    """Start it inside an event loop. A query whose client has gone is not answered."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._waiting: asyncio.Queue[Waiting] = asyncio.Queue(MAX_WAITING)
        # One thread: torch uses all cores for one query, and the towers are not shared between threads.
        self._thread = ThreadPoolExecutor(1, "search")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self,
        served: ServedIndex,
        queries: list[Query],
    ) -> list[list[Answer]]:
        """The answers of each query. Raises QueueFullError, and ValueError for a query that has none."""
        if self._waiting.qsize() + len(queries) > MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} queries are waiting; come back in a second")
        loop = asyncio.get_running_loop()
        futures = []
        for query in queries:
            future: asyncio.Future[list[Answer]] = loop.create_future()
            self._waiting.put_nowait((served, query, future))
            futures.append(future)
        return list(await asyncio.gather(*futures))

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run what uses the towers or the index in their thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())

            by_index: dict[str, list[Waiting]] = defaultdict(list)
            for entry in batch:
                served, _, future = entry
                if not future.cancelled():
                    by_index[served.name].append(entry)
            for entries in by_index.values():
                await self._answer(entries)

    async def _answer(self, entries: list[Waiting]) -> None:
        served = entries[0][0]
        results: Sequence[list[Answer] | Exception]
        try:
            await self.run(self._catalogue.refresh)
            results = await self.run(
                self._catalogue.search,
                served,
                [query for _, query, _ in entries],
            )
        except Exception as error:  # the worker lives on, whatever befalls one batch
            results = [error] * len(entries)
        for (_, _, future), result in zip(entries, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
