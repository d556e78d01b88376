"""Object stores and network disks fail now and then: ask again, and say in one line what is left."""

import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try, half to all of it

# What another try does not change. pyarrow puts the store's own word into the message of an OSError.
LASTING = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
LASTING_WORDS = (
    "ACCESS_DENIED",
    "ACCESS DENIED",
    "FORBIDDEN",
    "INVALID_ACCESS_KEY",
    "INVALID_CLIENT_TOKEN_ID",
    "NO_SUCH_BUCKET",
    "PERMISSION_DENIED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNAUTHENTICATED",
    "UNRECOGNIZED_CLIENT",
)


class StorageError(OSError):
    """A store that this machine cannot use; the message is one line with machine, place and cause."""


def with_retries(action: Callable[[], T], place: str) -> T:
    """What `action` returns, tried again with growing pauses as long as it fails for a passing reason.

    Raises StorageError where the last try failed as well. What lasts, such as a file that is not there, is
    raised at once, as it is.
    """
    for wait in WAITS:
        try:
            return action()
        except OSError as error:
            if is_lasting(error):
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))

    try:
        return action()
    except OSError as error:
        if is_lasting(error):
            raise
        raise unusable(place, error) from error


def asked(action: Callable[[], T], place: str) -> T:
    """`with_retries` where a refusal concerns the whole store, not one file: that is a StorageError too."""
    try:
        return with_retries(action, place)
    except OSError as error:
        if is_refused(error):
            raise unusable(place, error) from error
        raise


def is_lasting(error: OSError) -> bool:
    """Whether the same request would fail again."""
    return isinstance(error, LASTING) or error.errno is not None or is_refused(error)


def is_refused(error: OSError) -> bool:
    """Whether a store has said no: wrong credentials, no right to it, no such bucket."""
    if isinstance(error, StorageError):
        return False
    message = str(error).upper()
    return any(word in message for word in LASTING_WORDS)


def unusable(place: str, error: Exception) -> StorageError:
    """An error of a store in our words."""
    cause = " ".join(str(error).split())
    return StorageError(f"{socket.gethostname()} cannot use {place}: {cause}")
