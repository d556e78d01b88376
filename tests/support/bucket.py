"""An S3 on this machine, as moto plays it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server(wrap: Callable = lambda application: application) -> Iterator[str]:
    """Serves S3 while the block runs; yields the options that an address `s3://bucket/folder` needs.

    `wrap` puts something between its clients and the WSGI application.
    """
    application = wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        endpoint = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
        yield f"?{endpoint}&region=us-east-1&allow_bucket_creation=true"
    server.shutdown()
    thread.join()


def make_bucket(name: str, options: str) -> fs.FileSystem:
    """A new bucket of that server; returns its file system."""
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{name}/{options}")
    filesystem.create_dir(name)
    return filesystem
