"""How every command ends: one last line that says its exit code and why.

`ray job submit` itself knows only 0 and 1, so the line is what a log is read for.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from pipelines.command.secrets import hides_secrets, without_secrets

DONE = 0
FAILED = 1
REFUSED = 2
INTERRUPTED = 130
NOBODY_READS = (errno.EPIPE, errno.EIO)  # of a pipe, and of a terminal that is closed


class CommandFailedError(RuntimeError):
    """Something failed, and the message says all there is to say: no stack is printed."""

    exit_code = FAILED


def stop_like_ctrl_c() -> None:
    """Have a job that is stopped and a terminal that is closed end this process in order, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    # Otherwise it was started with nohup, to outlive its terminal.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def exit_code_of(command: Callable[[], int]) -> int:
    """Run `command` to its exit code; whatever it raises becomes its last line.

    ValueError (ConfigError, DatasetError, ...) is a mistake in the config or the data, CommandFailedError a
    failure that explains itself; a full disk, a store, a machine or a process that is gone are named as such.
    Anything else is a mistake of ours and comes with its stack. Nothing that it prints holds a password.
    """
    with closed_output_survived():
        return hides_secrets(_exit_code_of)(command)


def _exit_code_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except KeyboardInterrupt:
        return ended(INTERRUPTED, "the same command goes on from here", "interrupted")
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    cause = _unwrapped(error)
    if isinstance(cause, CommandFailedError):
        return ended(cause.exit_code, cause)
    if isinstance(cause, ValueError):
        return ended(REFUSED, cause)
    if full_disk := full_disk_of(cause) or full_disk_of(error):
        return ended(FAILED, full_disk)

    # Here, as it imports Ray, which most commands do without.
    from pipelines.cluster.failures import is_of_machines, reason_of

    if not is_of_machines(error):
        traceback.print_exception(error)
    return ended(FAILED, reason_of(error))


def _unwrapped(error: BaseException) -> BaseException:
    """What was raised, without what Ray wraps around it."""
    # Only a command that works with Ray can have an error of Ray's; the others need not import it.
    if "ray" not in sys.modules:
        return error
    from pipelines.cluster.failures import cause_of

    return cause_of(error)


def ended(
    code: int,
    reason: object,
    what: str = "error",
) -> int:
    """Print why, the first line of `reason` as the very last one; returns `code`."""
    first, *details = str(reason).strip().splitlines() or [""]
    sys.stdout.flush()
    for line in [*details, f"{what} (exit code {code}): {first}"]:
        print(line, file=sys.stderr, flush=True)
    return code


def full_disk_of(error: BaseException) -> str | None:
    """The line about a full disk, if that is what `error` or something that led to it says."""
    for cause in _causes(error):
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        # SQLite, torch and Arrow hide the number of the error in their words
        says_full = "disk is full" in str(cause) or os.strerror(errno.ENOSPC) in str(cause)
        if is_full or says_full:
            place = getattr(cause, "filename", None)
            where = f": {place}" if place else ""
            return f"the disk is full{where}; make room, and the same command goes on from here"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on; each once."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextmanager
def closed_output_survived() -> Iterator[None]:
    """Let the block work on when nobody reads its output any more, as after `| head`."""
    streams = _Survivor(sys.stdout, 1), _Survivor(sys.stderr, 2)
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield
        for stream in streams:
            stream.flush()


@contextmanager
def copied_to(file: Path) -> Iterator[None]:
    """Write what is printed and logged while the block runs to `file` too, and at last why it ended early."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", buffering=1) as copy:
        streams = _Copied(sys.stdout, copy), _Copied(sys.stderr, copy)
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]), _logged_to(streams[1]):
            try:
                yield
            except BaseException as error:
                streams[1].note(f"ended: {type(error).__name__}: {error}\n")
                raise


@contextmanager
def _logged_to(stream: Any) -> Iterator[None]:  # noqa: ANN401 - what stands in for a stream
    """Handlers keep the stream that they were made with."""
    handlers = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            handler.setStream(old or sys.stderr)


class _Copied:
    """A stream that also writes to a file, but for the bars of a terminal."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream = stream
        self._copy = copy

    def write(self, text: str) -> int:
        if not text.startswith("\r"):
            self.note(text)
        return self._stream.write(text)

    def note(self, text: str) -> None:
        """Write to the file alone. A full disk ends no work for the sake of its log."""
        with suppress(OSError):
            self._copy.write(without_secrets(text))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


class _Survivor:
    """A stream that is replaced by nothing once its pipe is broken or its terminal closed.

    stream: None where the process was started with its output closed, as by `>&-`.
    """

    def __init__(self, stream: TextIO | None, descriptor: int) -> None:
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115, PTH123 - as long as the process
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno not in NOBODY_READS:
            raise error

        # what is still in the buffer goes there too when Python ends and flushes
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._descriptor)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)
