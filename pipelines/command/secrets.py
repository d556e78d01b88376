"""Passwords and keys in URIs: one function takes them out of all that is printed, logged or written."""

import functools
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TextIO

# `user:password@` or `token@` behind `://`. A password may hold `/` and `@` where nobody encoded it, so the
# last `@` counts, unless what follows the colon is a port.
USER = re.compile(r"(?<=://)(?:[^\s/@:'\"]*:(?!\d+(?:/|$|\s))[^\s'\"]*@|[^\s/@:'\"]+@)")
OPTION = re.compile(
    r"([?&][\w-]*(?:password|passwd|secret|token|signature|access_key|sig)=)[^&\s'\"]+",
    re.I,
)


def without_secrets(value: Any) -> Any:  # noqa: ANN401 - the kind that it is given
    """The same text, mapping, list or tuple with `user:password@` and secret options of URIs taken out."""
    if isinstance(value, str):
        return OPTION.sub(r"\1***", USER.sub("", value))
    if isinstance(value, Mapping):
        return {key: without_secrets(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(entry) for entry in value)
    return value


class SafeStream:
    """A stream of text that hands on what is written without its secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(without_secrets(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def hides_secrets(main: Callable[..., int]) -> Callable[..., int]:
    """Decorates the `main` of a command: nothing that it prints, logs or traces back holds a secret."""

    @functools.wraps(main)
    def safe_main(*args: object, **options: object) -> int:
        with redirect_stdout(SafeStream(sys.stdout)), redirect_stderr(SafeStream(sys.stderr)):
            return main(*args, **options)

    return safe_main
