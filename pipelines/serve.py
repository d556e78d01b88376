"""A page and an HTTP API that search indexes of videos, to the second.

    python pipelines/serve.py INDEX
    python pipelines/serve.py INDEX OTHER_INDEX --port 9000    # several tuned methods side by side
    python pipelines/serve.py INDEX --host 0.0.0.0    # from other machines, with the token that it prints

The API is described at /docs: POST /search, POST /embed, GET /video, GET /health. Exit codes: 0 ended,
2 something to put right, 130 interrupted.
"""

import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0,
    str(Path(__file__).parent.parent),
)  # this checkout, also where another one is installed

from pipelines.command.arguments import CommandLine, UsageError
from pipelines.command.exit_codes import DONE, exit_code_of

TOKEN_VARIABLE = "VOPCORE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

CLI = CommandLine("serve", __doc__)
CLI.add_argument(
    "indexes",
    nargs="+",
    metavar="INDEX",
    help="a folder or bucket that index.py has made",
)
CLI.add_argument(
    "--port",
    type=int,
    default=8000,
    help="(8000)",
)
CLI.add_argument(
    "--host",
    default="127.0.0.1",
    help="this machine alone (127.0.0.1), or 0.0.0.0 for all",
)
CLI.add_argument(
    "--replicas",
    type=int,
    default=1,
    help="processes, through Ray Serve where more than 1",
)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    arguments = CLI.parse_args(argv)
    if arguments.replicas < 1:
        raise UsageError(f"--replicas: {arguments.replicas} is not 1 or more")
    listener = listen(arguments.host, arguments.port)
    port = listener.getsockname()[1]

    from pipelines.serving import run

    token = None
    if arguments.host not in LOOPBACK:
        token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    settings = run.ServerSettings(
        uris=tuple(arguments.indexes),
        host=arguments.host,
        port=port,
        token=token,
    )
    if arguments.replicas > 1:
        listener.close()
        run.serve_replicas(settings, arguments.replicas)
    else:
        run.serve_here(settings, listener)
    return DONE


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound before anything is loaded. Raises UsageError where the port is taken."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port: {port} is not between 0 and 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: {error.strerror or error}; try another port"
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
