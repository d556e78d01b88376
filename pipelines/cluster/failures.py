"""What Ray wraps around an error is taken off: what went wrong, as one line for people.

A task that raises, an actor that dies and a worker group that fails reach the driver inside errors of Ray's
own, whose text is pages long. Some hold the error that was raised, others only its traceback.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ray import exceptions

from vopcore.storage import StorageError

# Python's own words between two tracebacks
ANOTHER_ERROR = "The above exception was the direct cause"
LAST_OF_TRACEBACK = re.compile(r"((?:\w+\.)*[A-Z]\w*): (.*)")
ADDRESS = re.compile(r"^\s*ip: (\S+)", re.MULTILINE)

# where Ray keeps what it wraps
INSIDE = ("controller_failure", "health_check_failure", "cause")
# What a worker says whose peers are gone: never the reason itself.
ECHOES = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "Socket closed")


class RaisedFarAway(NamedTuple):
    """An error of which only the traceback arrived. name: of its class, with the module."""

    name: str
    message: str


def cause_of(error: BaseException) -> BaseException:
    """What was raised, in whatever it is wrapped."""
    while True:
        wrapped = _wrapped_in(error)
        if wrapped is None:
            return error
        error = wrapped


def reason_of(error: BaseException) -> str:
    """One line: what was raised, or in plain words what happened to a machine or a process."""
    cause = cause_of(error)
    if not _is_rays(cause):
        return _named(type(cause).__module__, type(cause).__name__, str(cause))

    text = str(cause)
    far = _raised_far_away(text)
    if far is not None:
        module, _, name = far.name.rpartition(".")
        return _named(module, name, far.message)
    return _words_for(cause, text)


def is_of_machines(error: BaseException) -> bool:
    """Whether a machine, a process, a store or the network failed, so that no stack of ours says more."""
    cause = cause_of(error)
    if not _is_rays(cause):
        return isinstance(cause, StorageError)

    far = _raised_far_away(str(cause))
    return far is None or far.name.endswith(StorageError.__name__)


def is_lost_process(error: BaseException) -> bool:
    """Whether a process of the cluster ended without raising anything."""
    cause = cause_of(error)
    kinds = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError)
    return isinstance(cause, kinds) and _raised_far_away(str(cause)) is None


def _wrapped_in(error: BaseException) -> BaseException | None:
    """The next error inside; None: there is none, or what is there says less than the text around it."""
    if not _is_rays(error):
        return None

    workers = getattr(error, "worker_failures", None)
    if workers:
        return _first_reason(workers.values())

    for name in INSIDE:
        inside = getattr(error, name, None)
        if isinstance(inside, exceptions.UserCodeException):
            return inside.__cause__
        if isinstance(inside, BaseException):
            return inside
    return error.__cause__


def _first_reason(failures: Iterable[BaseException]) -> BaseException:
    """Of what several workers say, what the others only answer to."""
    ordered = sorted(failures, key=_is_echo)
    return ordered[0]


def _is_echo(failure: BaseException) -> int:
    """0: an error that was raised, 1: a process that is gone, 2: what its peers say to that."""
    if is_lost_process(failure):
        return 1
    return 2 * any(word in str(failure) for word in ECHOES)


def _is_rays(error: BaseException) -> bool:
    is_error = isinstance(error, exceptions.RayError)
    return is_error or type(error).__module__.startswith("ray.")


def _raised_far_away(text: str) -> RaisedFarAway | None:
    """The error that a text of Ray's was made from, by the last line of its first traceback."""
    first, *_ = text.split(ANOTHER_ERROR)
    if 'File "' not in first:
        return None

    for line in reversed(first.splitlines()):
        match = LAST_OF_TRACEBACK.match(line)
        if match:
            return RaisedFarAway(match[1], match[2])
    return None


def _named(
    module: str,
    name: str,
    message: str,
) -> str:
    """Our own errors say all there is to say; of others the class helps."""
    first_line = next(iter(message.strip().splitlines()), "")
    if module.startswith(("vopcore.", "pipelines.")):
        return first_line
    return f"{name}: {first_line}" if first_line else name


def _words_for(error: BaseException, text: str) -> str:
    """What happened, of an error that Ray has made itself."""
    address = ADDRESS.search(text)
    where = f" on {address[1]}" if address else ""
    if isinstance(error, exceptions.OutOfMemoryError):
        return (
            "a machine ran out of memory, and Ray ended the process that worked there: fewer CPUs per machine"
            " (ray start --num-cpus) or more memory help"
        )
    if isinstance(error, exceptions.NodeDiedError) or "node has died" in text:
        return f"a machine of the cluster is gone{where}"
    if isinstance(error, exceptions.RayActorError | exceptions.WorkerCrashedError):
        return f"a process{where} was ended from outside (killed, out of memory, or a crash in a library)"
    if isinstance(error, exceptions.OutOfDiskError | exceptions.ObjectStoreFullError):
        return "the disk or the memory that Ray keeps objects in is full on a machine"

    sentence = " ".join(text.split()).split(". ")[0]
    return f"Ray could not go on: {sentence or type(error).__name__}"
