"""Videos and thumbnails over HTTP: only files that are in the index and below its root, parts of them too."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from fastapi import HTTPException
from pyarrow import fs
from starlette.responses import FileResponse, Response, StreamingResponse

from pipelines.indexing.files import is_inside
from vopcore.index import Index
from vopcore.storage import open_uri

BLOCK = 2**18  # bytes sent at once
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm",
    ".mkv": "video/webm", ".ogv": "video/ogg", ".avi": "video/x-msvideo", ".ts": "video/mp2t",
}  # fmt: skip


def video_response(
    index: Index,
    video: str,
    range_header: str | None,
) -> Response:
    """A video of the index, or the part that `Range` asks for.

    Raises HTTPException 404 for everything that is not a video of the index, or no longer there.
    """
    # The name is looked up, never joined to a path before it is known.
    try:
        index.number(video)
    except KeyError:
        raise HTTPException(404, "no such video in this index") from None

    filesystem, root = open_uri(index.header.root)
    path = f"{root.rstrip('/')}/{video}"
    kind = TYPES.get(Path(video).suffix.lower(), "application/octet-stream")
    if isinstance(filesystem, fs.LocalFileSystem):
        _check_file(Path(root), Path(path))
        return FileResponse(path, media_type=kind)
    return _remote_response(filesystem, path, kind, range_header)


def _check_file(root: Path, path: Path) -> None:
    """The file may have been replaced by something else since it was indexed."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        is_file = False
    if not is_file or not is_inside(root, path):
        raise HTTPException(404, "this video is no longer there")


def _remote_response(
    filesystem: fs.FileSystem,
    path: str,
    kind: str,
    range_header: str | None,
) -> StreamingResponse:
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        raise HTTPException(404, "this video is no longer there")

    first, last = parse_range(range_header, info.size)
    headers = {"accept-ranges": "bytes", "content-length": str(last - first + 1)}
    if range_header is None:
        return StreamingResponse(
            _blocks(filesystem, path, first, last),
            200,
            headers,
            kind,
        )
    headers["content-range"] = f"bytes {first}-{last}/{info.size}"
    return StreamingResponse(_blocks(filesystem, path, first, last), 206, headers, kind)


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """First and last byte of a file of `size` bytes; the whole file without a header.

    Raises HTTPException 416 for what is no single range of the file.
    """
    if header is None:
        return 0, size - 1
    match = RANGE.fullmatch(header.strip())
    refusal = HTTPException(
        416,
        "not a range of this file",
        {"content-range": f"bytes */{size}"},
    )
    if match is None or match.groups() == ("", ""):
        raise refusal

    start, end = match.groups()
    if not start:
        return max(size - int(end), 0), size - 1
    first = int(start)
    last = min(int(end), size - 1) if end else size - 1
    if first > last:
        raise refusal
    return first, last


def _blocks(
    filesystem: fs.FileSystem,
    path: str,
    first: int,
    last: int,
) -> Iterator[bytes]:
    with filesystem.open_input_file(path) as file:
        file.seek(first)
        left = last - first + 1
        while left > 0:
            block = file.read(min(BLOCK, left))
            if not block:
                return
            left -= len(block)
            yield block


def thumbnail_response(
    index: Index,
    video: str,
    time: float,
) -> Response:
    """The picture nearest to a time. Raises HTTPException 404."""
    try:
        picture = index.thumbnail(video, time)
    except KeyError:
        raise HTTPException(404, "no such video in this index") from None
    return Response(
        picture,
        media_type="image/jpeg",
        headers={"cache-control": "private, max-age=60"},
    )
