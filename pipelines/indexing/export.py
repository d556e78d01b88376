"""An index as a Parquet file, for any other engine."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vopcore.index import Index

COLUMNS = ("video", "start", "end", "best", "vector", "thumbnail")


def export_parquet(index: Index, file: Path) -> int:
    """Write every moment, its vector as float32; returns how many. The file is there whole or not at all.

    Raises ValueError, one line, for an empty index and for a folder that cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{file}: its folder cannot be made: {error.strerror}") from None
    partial = file.with_name(f".{file.name}.part")
    num_moments = 0
    writer = None
    try:
        for table in index.table.moments():
            moments = table.select(COLUMNS)
            vectors = moments["vector"].cast(pa.list_(pa.float32(), index.header.dimension))
            moments = moments.set_column(COLUMNS.index("vector"), "vector", vectors)
            if writer is None:
                writer = pq.ParquetWriter(partial, moments.schema)
            writer.write_table(moments)
            num_moments += len(moments)
        if writer is None:
            raise ValueError(f"{index.store.folder}: the index is empty")
    finally:
        if writer is not None:
            writer.close()
    partial.replace(file)
    return num_moments
