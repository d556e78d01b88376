"""The config that the tests of what is checked before a run start from."""

import pytest

from vopcore.config import read_config

TINY = "clip: {model: conf/tiny_clip.json, pretrained: null, words: 16}\nvideo: {frames: 2, size: 32}\n"


@pytest.fixture
def config(tmp_path):
    """Reads a small config with the given overrides; its data and its output lie in `tmp_path`."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\noutput: {tmp_path}/out\ndata: {{dataset: folder, root: {tmp_path}}}\n"
        f"{TINY}methods: {{vop: {{}}}}\n"
    )
    return lambda *overrides: read_config(path, overrides)
