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
PUBLISHED = {
    "train": (None, 101_079),
    "val": (None, 7408),
    "test": (1000, 1000),
}

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
NUM_COLUMNS = 6


def lsmdc(annotations: Path, videos: str | Path | VideosFolder) -> pa.Table:
    """One row per sentence, sentences of a clip together; splits whose file is missing are noted."""
    files = AnnotationFiles(annotations)
    reading = Reading(VideoFiles(videos))
    file_names = []
    for split, name in FILES.items():
        path = files.find(name)
        if path is None:
            reading.absent(files.root / name, split)
            continue
        file_names.append(name)
        read_sentences(path, split, reading)

    if not file_names:
        looked_for = ", ".join(FILES.values())
        raise DatasetError(f"{annotations} holds no LSMDC: looked for {looked_for}")
    return reading.table(f"CLIP4Clip ({', '.join(file_names)})")


def read_sentences(
    path: Path,
    split: str,
    reading: Reading,
) -> None:
    """Adds the sentences of one file."""
    for where, line in read_lines(path, reading):
        fields = line.split("\t")
        if len(fields) != NUM_COLUMNS:
            reading.problem(
                where,
                f"{len(fields)} columns between tabs, not {NUM_COLUMNS}; left out",
            )
            continue

        # a name holds dots, so the suffix has to be asked for as well
        video = fields[0].strip()
        sentence = fields[-1].strip()
        reading.add(
            split,
            video,
            [sentence],
            where,
            names=[video, f"{video}.avi"],
            source=film(video),
        )


def film(video: str) -> str:
    """`3086_UGLY_TRUTH` of `3086_UGLY_TRUTH_00.23.23.000-00.23.28.886`: also the folder of its file."""
    name_and_hour = video.split(".")[0]
    return name_and_hour[:-3]
