"""LSMDC (Rohrbach et al., IJCV 2017): clips of films with a sentence each; the test is the 1,000 of 2016's
challenge.

Files: LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv (as spelled
there): tab separated, no header, six columns: clip, start and end aligned, start and end extracted,
sentence. Videos: <film>/<clip>.avi; a clip's name holds dots. A clip may have several sentences in train
and val, all kept.
"""

from pathlib import Path

import pyarrow as pa

from vopcore.datasets.errors import DatasetError
from vopcore.datasets.files import AnnotationFiles, read_lines
from vopcore.datasets.match import VideoFiles, VideosFolder
from vopcore.datasets.table import Reading

# (clips, sentences); None: not published as such. Sentences as LSMDC's readme says, test counted on its file.
PUBLISHED = {"train": (None, 101_079), "val": (None, 7408), "test": (1000, 1000)}

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
NUM_COLUMNS = 6


def lsmdc(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """One row per sentence, sentences of a clip together; splits whose file is missing are noted."""
    files, reading = AnnotationFiles(annotations), Reading(VideoFiles(videos))
    found = {split: path for split, name in FILES.items() if (path := files.find(name))}
    if not found:
        raise DatasetError(f"{annotations} holds no LSMDC: looked for {', '.join(FILES.values())}")
    for split, name in FILES.items():
        if split not in found:
            reading.absent(files.root / name, split)
            continue
        for where, line in read_lines(found[split], reading):
            fields = line.split("\t")
            if len(fields) == NUM_COLUMNS:
                clip = fields[0].strip()
                reading.add(
                    split, clip, [fields[-1].strip()], where, names=[clip, f"{clip}.avi"], source=film(clip)
                )
            else:
                reading.problem(where, f"{len(fields)} columns between tabs, not {NUM_COLUMNS}; left out")
    return reading.table(f"CLIP4Clip ({', '.join(path.name for path in found.values())})")


def film(clip: str) -> str:
    """`3086_UGLY_TRUTH` of `3086_UGLY_TRUTH_00.23.23.000-00.23.28.886`: also the folder of its file."""
    return clip.split(".")[0][:-3]
