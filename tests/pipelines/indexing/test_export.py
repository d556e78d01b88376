"""An index as a Parquet file: every moment, and one line for what cannot be written."""

import numpy as np
import pyarrow.parquet as pq
from support.moments import HEADER, moments, video

from pipelines import index as cli
from vopcore.index import write_header
from vopcore.index.table import ArrowMoments
from vopcore.storage import Store


def test_every_moment_is_exported_with_its_vector_in_fp32(tmp_path):
    store = Store(tmp_path / "index")
    write_header(store, HEADER)
    stored = moments(40)
    ArrowMoments(store, HEADER.dimension).add([(video("a.mp4", 40.0), stored)])

    file = tmp_path / "new folder/moments.parquet"
    assert cli.main(["export", str(tmp_path / "index"), str(file)]) == 0
    table = pq.read_table(file)
    assert table.column_names == ["video", "start", "end", "best", "vector", "thumbnail"]
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, stored.vectors.astype(np.float32))
    assert table["thumbnail"].to_pylist() == list(stored.thumbnails)
    assert [path.name for path in file.parent.iterdir()] == ["moments.parquet"]


def test_what_cannot_be_written_or_is_empty_is_one_line(tmp_path, capsys):
    write_header(Store(tmp_path / "index"), HEADER)
    (tmp_path / "file").touch()
    for target, reason in (("file/m.parquet", "its folder cannot be made"), ("m.parquet", "is empty")):
        assert cli.main(["export", str(tmp_path / "index"), str(tmp_path / target)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
