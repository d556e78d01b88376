"""Which videos a shard folder holds, in columns: one Arrow file that all processes of a machine share.

The sidecars of the shards are the truth, and the index is made from them: it names each sidecar it has read,
with size and time, so what is new or changed is noticed by listing the folder. It lies in `index/` beside the
shards, memory-mapped and sorted by video, so nothing is read but what is asked for.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vopcore.shards.schema import ENTRY_COLUMNS, Entry, Layout, check_format
from vopcore.storage import ShardCache, Store, file_sha256

FOLDER = "index"
CURRENT = "current.json"  # names the Arrow file that counts
SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        *ENTRY_COLUMNS,
        ("source_sha256", pa.string()),
        ("content", pa.string()),
    ]
)
ENTRY_NAMES = [field.name for field in fields(Entry)]


class Stamp(NamedTuple):
    """What tells one state of a sidecar from another: its bytes, and its change in nanoseconds since 1970."""

    size: int
    mtime: int


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A committed shard: rows, bytes and SHA-256 of its file, how frames are stored, its sidecar's stamp."""

    number: int
    rows: int
    bytes: int
    sha256: str
    layout: Layout
    stamp: Stamp


class ShardIndex:
    """The videos of a shard folder, each once; of one decoded twice, the later shard counts.

    `table` has the columns of SCHEMA, sorted by video. `is_saved`: whether the folder's index file says the
    same.
    """

    def __init__(
        self,
        table: pa.Table,
        shards: Mapping[int, ShardFile],
        is_saved: bool,
    ) -> None:
        self.table = table
        self.shards = dict(shards)
        self.is_saved = is_saved
        self._columns = {name: _one_chunk(table.column(name)) for name in table.column_names}

    def __len__(self) -> int:
        return self.table.num_rows

    def position(self, video: str) -> int | None:
        """The row of a video in the table; None if it is not there."""
        videos = self._columns["video"]
        rows = range(len(videos))
        position = bisect_left(rows, video, key=lambda row: videos[row].as_py())
        if position == len(videos) or videos[position].as_py() != video:
            return None
        return position

    def positions(self, videos: pa.Array) -> pa.Array:
        """The rows of many videos, int32; null for those that are not there."""
        return pc.index_in(videos, value_set=self._columns["video"])

    def value(
        self,
        column: str,
        position: int,
    ) -> Any:  # noqa: ANN401 - as the column's type
        """One cell of the table."""
        return self._columns[column][position].as_py()

    def entry(self, position: int) -> Entry:
        """All that is known of one video."""
        values = {name: self.value(name, position) for name in ENTRY_NAMES}
        return Entry(**values)

    def with_mtimes(self, positions: pa.Array, mtimes: pa.ChunkedArray) -> "ShardIndex":
        """The index with other times of change of some source files, float64 [N]; the sidecars keep the old
        ones.
        """
        stored = self._columns["source_mtime"].to_numpy(zero_copy_only=False)
        column = stored.copy()
        column[positions.to_numpy()] = mtimes.to_numpy()

        # NumPy has NaN for null, `from_pandas` makes it null again
        values = pa.array(column, pa.float64(), from_pandas=True)
        schema = self.table.schema
        number = schema.get_field_index("source_mtime")
        table = self.table.set_column(number, schema.field(number), values)
        return ShardIndex(table, self.shards, is_saved=False)

    def digest(self, videos: Sequence[str] | pa.Array | None = None) -> str:
        """Sixteen characters that change when one of `videos` (None: all) gives other frames.

        They do not depend on which shard holds a video nor on where or when its file was copied. A video
        that is not there counts as such.
        """
        rows = self.table
        if videos is not None:
            wanted = pc.unique(pa.array(videos, pa.string()))
            positions = self.positions(wanted).drop_null()

            # in the order of the table, whatever the order they were asked for
            order = pc.array_sort_indices(positions)
            rows = self.table.take(positions.take(order))

        digest = hashlib.sha256()
        for name in ("video", "status", "num_frames", "start", "end", "content"):
            digest.update(_bytes_of(rows.column(name)))

        # how many times each video has, and all of them
        times = _one_chunk(rows.column("times"))
        num_times = pc.list_value_length(times)
        num_times = num_times.to_numpy(zero_copy_only=False)
        all_times = times.flatten().to_numpy()
        digest.update(num_times.tobytes())
        digest.update(all_times.tobytes())

        # Shards written before frames were hashed: the file that was decoded has to do.
        has_no_hash = pc.is_null(rows.column("content"))
        unhashed = rows.filter(has_no_hash)
        for name in ("video", "source_size", "source_mtime"):
            digest.update(_bytes_of(unhashed.column(name)))
        return digest.hexdigest()[:16]


class Entries(Mapping[str, Entry]):
    """The entries of an index by video, each made when it is asked for."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def __getitem__(self, video: str) -> Entry:
        position = self._index.position(video)
        if position is None:
            raise KeyError(video)
        return self._index.entry(position)

    def __contains__(self, video: object) -> bool:
        return isinstance(video, str) and self._index.position(video) is not None

    def __iter__(self) -> Iterator[str]:
        for video in self._index.table.column("video"):
            yield video.as_py()

    def __len__(self) -> int:
        return len(self._index)


def read_index(store: Store, cache: ShardCache | None = None) -> ShardIndex:
    """The index of a shard folder as its sidecars are now; reads those that its index file does not know."""
    stamps = _stamps(store)
    empty = ShardIndex(SCHEMA.empty_table(), {}, is_saved=False)
    saved = _saved(store, cache or ShardCache())
    if saved is None:
        saved = empty
    known = {number: shard.stamp for number, shard in saved.shards.items()}
    if saved.is_saved and known == stamps:
        return saved

    # A sidecar that is gone or another one may bring back a video that was decoded twice: begin anew.
    is_changed = any(stamps.get(number) != stamp for number, stamp in known.items())
    if is_changed:
        saved = empty

    fresh = sorted(stamps.keys() - saved.shards.keys())
    names = [f"{number:06d}.json" for number in fresh]
    tables = [saved.table]
    shards = dict(saved.shards)

    # an object store answers late, and many requests at once
    num_threads = 4 if store.is_local else 32
    with ThreadPoolExecutor(num_threads) as pool:
        contents = pool.map(store.read, names)
        for number, content in zip(fresh, contents, strict=True):
            sidecar = json.loads(content)
            shards[number] = _shard_file(number, sidecar, stamps[number])
            tables.append(_rows(number, sidecar["videos"]))

    table = _latest(pa.concat_tables(tables))
    return ShardIndex(table, shards, is_saved=False)


def save_index(store: Store, index: ShardIndex) -> None:
    """Write the index file of a folder, whole or not at all, where it is not there already."""
    if index.is_saved:
        return
    folder = store.child(FOLDER)
    shards = [asdict(shard) for _, shard in sorted(index.shards.items())]
    facts = json.dumps(shards)
    table = index.table.combine_chunks()
    table = table.replace_schema_metadata({"shards": facts})

    # Another name for another content: who has the old file open is not disturbed.
    key = hashlib.sha256(facts.encode())
    key.update(_bytes_of(table.column("source_mtime")))
    name = f"{key.hexdigest()[:24]}.arrow"
    with folder.writing(name) as path:
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        sha256 = file_sha256(path)

    # Last: whoever reads CURRENT finds the file that it names.
    current = json.dumps({"file": name, "sha256": sha256})
    folder.write(CURRENT, current.encode())
    index.is_saved = True

    # Who has the old one open keeps it; who is about to open it makes the index from the sidecars.
    for other in folder.names():
        if other.endswith(".arrow") and other != name:
            folder.delete(other)


def _stamps(store: Store) -> dict[int, Stamp]:
    """The committed shards by number."""
    stamps = {}
    for info in store.files():
        stem, _, suffix = info.base_name.rpartition(".")
        if suffix == "json" and stem.isdigit():
            stamps[int(stem)] = Stamp(info.size, info.mtime_ns)
    return stamps


def _saved(store: Store, cache: ShardCache) -> ShardIndex | None:
    """What the index file says; None where there is none that can be read."""
    folder = store.child(FOLDER)
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        current = json.loads(folder.read(CURRENT))
        file, held = cache.open(folder, current["file"], current["sha256"])
        table = pa.ipc.open_file(file).read_all()
        if held is not None:
            held.close()  # what is mapped stays, even if the cache lets go of the file

        # an index of another version
        if table.schema.remove_metadata() != SCHEMA:
            return None

        shards = {}
        for fact in json.loads(table.schema.metadata[b"shards"]):
            layout = Layout(**fact.pop("layout"))
            stamp = Stamp(*fact.pop("stamp"))
            shards[fact["number"]] = ShardFile(
                **fact,
                layout=layout,
                stamp=stamp,
            )
        return ShardIndex(table, shards, is_saved=True)
    return None


def _shard_file(
    number: int,
    sidecar: dict[str, Any],
    stamp: Stamp,
) -> ShardFile:
    check_format(sidecar, number)
    return ShardFile(
        number=number,
        rows=sidecar["rows"],
        bytes=sidecar["bytes"],
        sha256=sidecar["sha256"],
        layout=Layout(**sidecar["layout"]),
        stamp=stamp,
    )


def _rows(number: int, entries: Sequence[dict[str, Any]]) -> pa.Table:
    """What a sidecar says of its videos; what it does not say, as one of an older version, is null."""
    # the shard and the row there come first; the other columns are what the sidecar says
    num_rows = len(entries)
    shards = np.full(num_rows, number, np.int32)
    rows = np.arange(num_rows, dtype=np.int32)
    columns = [pa.array(shards), pa.array(rows)]
    for name in SCHEMA.names[2:]:
        values = [entry.get(name) for entry in entries]
        columns.append(pa.array(values, SCHEMA.field(name).type))
    return pa.table(columns, schema=SCHEMA)


def _latest(table: pa.Table) -> pa.Table:
    """Sorted by video, of each the row of the highest shard."""
    order = pc.sort_indices(table, [("video", "ascending"), ("shard", "descending")])
    table = table.take(order).combine_chunks()
    if table.num_rows < 2:
        return table

    # a row counts if the one above it is of another video
    videos = _one_chunk(table.column("video"))
    following = videos.slice(1)
    preceding = videos.slice(0, len(following))
    is_another = pc.not_equal(preceding, following)
    is_first = pa.concat_arrays([pa.array([True]), is_another])
    return table.filter(is_first).combine_chunks()


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _bytes_of(column: pa.ChunkedArray) -> bytes:
    """The values of a column, nulls too, as bytes that are equal only for equal columns."""
    values = _one_chunk(column).cast(pa.string())
    lengths = pc.fill_null(pc.binary_length(values), -1).to_numpy().astype(np.int32)
    text = "".join(values.drop_null().to_pylist())
    return lengths.tobytes() + text.encode()
