"""An index of every video in a folder, made without Ray, and a real server over such indexes."""

import socket
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from support.moments import HEADER

from pipelines.serving.app import create_app
from vopcore.index import IndexedVideo, IndexHeader, WindowRule, open_index, write_header
from vopcore.index.encode import WindowEncoder, WindowFrames
from vopcore.index.model import prepare_text_tower, upload_model
from vopcore.storage import Store
from vopcore.video import decode_moments


def make_index(folder: Path, videos: Path, model: Path) -> Path:
    """An index of every video below `videos`, made without Ray."""
    facts = prepare_text_tower(model)
    header = IndexHeader(
        **{
            **HEADER.__dict__,
            "root": str(videos),
            "dimension": facts.dimension,
            "pooling": facts.pooling,
            "method": facts.method,
            "backbone": facts.backbone,
            "tuned": facts.tuned,
            "seconds": 2.0,
            "every": 1.0,
        }
    )
    upload_model(model, str(folder))
    write_header(Store(folder), header)
    encoder = WindowEncoder(model)
    settings = encoder.settings
    rows = []
    for path in sorted(videos.rglob("*.mp4")):
        spans = WindowRule(2, 1).windows(6.0)
        decoded = decode_moments(path, spans, count=settings.frames, size=settings.size, thumbnails=True)
        pixels = np.concatenate([moment.pixels for moment in decoded])
        times = np.concatenate([moment.times for moment in decoded])
        thumbnails = [thumbnail for moment in decoded for thumbnail in moment.thumbnails]
        frames = [list(range(settings.frames * i, settings.frames * (i + 1))) for i in range(len(spans))]
        facts_of_file = path.stat()
        entry = IndexedVideo(
            video=path.relative_to(videos).as_posix(),
            size=facts_of_file.st_size,
            mtime=facts_of_file.st_mtime,
            duration=6.0,
        )
        rows.append((entry, encoder.rows(WindowFrames(spans, pixels, thumbnails, times, frames))))
    open_index(str(folder)).table.add(rows)
    return folder


class Server:
    """A real server on a port of its own, in a thread."""

    def __init__(self, *indexes: Path, token: str | None = None) -> None:
        app = create_app([str(index) for index in indexes], token)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self.url

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
