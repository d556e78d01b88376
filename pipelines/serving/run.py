"""Run the application: in this process, or in several through Ray Serve."""

import socket
import time
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from pipelines.serving.app import LOOPBACK_NAMES, create_app


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What is served and where. token: None where only this machine may ask."""

    uris: tuple[str, ...]
    host: str
    port: int
    token: str | None

    @property
    def address(self) -> str:
        """What to open in a browser; the token travels behind the `#`, which is sent nowhere."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        page = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        return page if self.token is None else f"{page}#{self.token}"


def serve_here(settings: ServerSettings, listener: socket.socket) -> None:
    """Until interrupted. Raises BadIndexError."""
    app = _app(settings)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    print(f"Open {settings.address}  (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def serve_replicas(settings: ServerSettings, replicas: int) -> None:
    """The same application in several processes behind Ray Serve's proxy, until interrupted."""
    from pipelines.cluster.start import join_ray
    from vopcore.index import open_index

    for uri in settings.uris:
        open_index(uri)  # what cannot be read is refused here, in one line

    try:
        from ray import serve
    except ImportError as error:
        raise ValueError(
            f"--replicas: Ray Serve is not installed ({error}); pip install 'ray[serve]'"
        ) from None

    join_ray(replicas + 1)
    serve.start(http_options={"host": settings.host, "port": settings.port})

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=200)
    @serve.ingress(lambda: _app(settings))
    class Replica:
        """One process with the application."""

    kind: Any = Replica  # Ray Serve gives it methods that its type has not
    bound = kind.bind()
    try:
        serve.run(bound, name="vopcore")
        print(f"Open {settings.address}  (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()


def _app(settings: ServerSettings) -> FastAPI:
    is_local = settings.host in LOOPBACK_NAMES
    return create_app(settings.uris, settings.token, check_host=is_local)
