"""Opening an index for an update: what is refused before anything is written."""

import subprocess
import sys

from support import ROOT
from support.video import write_video

WITHOUT_LANCEDB = """
import sys
sys.modules["lancedb"] = None
from pipelines.index import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_engine_lance_without_lancedb_is_one_line_that_says_what_to_install(tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", 20)
    index = tmp_path / "index"
    command = [
        *(sys.executable, "-c", WITHOUT_LANCEDB, str(tmp_path / "videos"), f"index={index}"),
        *("engine=lance", f"model={ROOT / 'conf/tiny_clip.json'}", "pretrained=null"),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert "pip install -e '.[search]'" in line
    assert not (index / "index.json").exists()
