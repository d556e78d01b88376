"""Where a folder is: a local path, or `s3://bucket/folder?option=value`.

The part after the bucket is taken as it is written, as `aws s3` does: `%20` is three characters and a space
is a space, so a name found in a listing can be written down unchanged. Below a folder, names travel as a
file system and a path in it, never as text to be parsed again.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from pyarrow import fs

OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
OPTIONS = re.compile(r"\?([a-z_]+=[^&?]*(?:&[a-z_]+=[^&?]*)*)$", re.IGNORECASE)


def is_uri(place: str) -> bool:
    """Whether a folder was named with a scheme such as `s3://`; a path may hold `://` further on."""
    return SCHEME.match(place) is not None


def local_path(path: str) -> Path:
    """The path made absolute, `~` being the home folder.

    Raises ValueError where nobody knows a home, as in a container whose user has neither HOME nor an entry.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path}: there is no home folder for ~ here (HOME is not set)") from None


def open_uri(place: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or file, and its path there.

    Raises ValueError naming the place if no such file system is known.
    """
    match = SCHEME.match(place)
    if match is None:
        path = os.path.abspath(place)  # noqa: PTH100 - Path.absolute() keeps the dots
        return fs.LocalFileSystem(), path

    scheme = match[1].lower()
    rest = place[match.end() :]
    if scheme == "file":
        return fs.LocalFileSystem(), unquote(rest)

    try:
        # others, such as hdfs://, are for pyarrow to read
        if scheme not in OBJECT_STORES:
            return fs.FileSystem.from_uri(place)
        return _open_bucket(scheme, rest)
    except (OSError, ValueError) as error:
        raise ValueError(f"{display(place)}: {error}") from error


def _open_bucket(scheme: str, rest: str) -> tuple[fs.FileSystem, str]:
    """The bucket alone goes through pyarrow's parser, which would decode `%20` in the key and end it at a
    `#`.
    """
    location, options = split_options(rest)
    bucket, _, key = location.partition("/")

    address = f"{scheme}://{bucket}/{options}"
    filesystem, root = fs.FileSystem.from_uri(address)

    # the key goes behind the bucket as it is written
    path = root.rstrip("/")
    if key:
        path = f"{path}/{key}"
    return filesystem, path.rstrip("/")


def split_options(place: str) -> tuple[str, str]:
    """A place without the options of its file system, and those with their question mark.

    A question mark that no `key=value` follows belongs to a name.
    """
    match = OPTIONS.search(place)
    if match is None:
        return place, ""
    location = place[: match.start()]
    return location, match[0]


def below(place: str, name: str) -> str:
    """The path or URI of `name`, one of our own plain names, in the folder `place`; options stay last."""
    location = place
    options = ""
    if is_uri(place):
        location, options = split_options(place)
    folder = location.rstrip("/")
    return f"{folder}/{name}{options}"


def display(place: str) -> str:
    """A place as messages show it: without options and without what stands before an `@`, as both may hold
    secrets.
    """
    if not is_uri(place):
        return place
    location, _ = split_options(place)
    scheme, _, rest = location.partition("://")
    bucket, slash, key = rest.partition("/")

    # access_key:secret_key@bucket
    _, _, bucket = bucket.rpartition("@")
    return f"{scheme}://{bucket}{slash}{key}"
