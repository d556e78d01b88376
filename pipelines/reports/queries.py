"""What a gallery shows of one run, or of two side by side: captions, their best videos, strips of frames."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.reports.page import data_uri
from vopcore.shards import Shards

FRAMES, HEIGHT = 4, 96  # of a strip; pixels

Found = list[dict[str, Any]]  # rows of PREDICTIONS


def gallery_data(
    names: Sequence[str], tables: Sequence[pa.Table], shards: Shards | None, most: int, seed: int = 0
) -> dict[str, Any]:
    """Everything the page shows, as plain values: `runs`, `queries`, `videos` (with their strips), `total`.

    names, tables: one or two runs and their PREDICTIONS. most: how many captions are kept; where there are
    more, those that only one of two runs finds first come before a random choice of the others. Raises
    ValueError if the runs were not measured on the same captions.
    """
    runs = [table.to_pylist() for table in tables]
    asked = [[(row["caption"], row["video"]) for row in run] for run in runs]
    if any(other != asked[0] for other in asked):
        raise ValueError(f"{' and '.join(names)} were not measured on the same captions; nothing to compare")
    kept = chosen(runs, most, seed)
    shown = [[run[row] for row in kept] for run in runs]
    videos = list(
        dict.fromkeys(video for run in shown for row in run for video in [row["video"], *row["top"]])
    )
    number = {video: place for place, video in enumerate(videos)}
    return {
        "runs": list(names),
        "total": len(asked[0]),
        "queries": [_query(rows, number) for rows in zip(*shown, strict=True)],
        "videos": [{"id": video, **strip(shards, video)} for video in videos],
    }


def chosen(runs: Sequence[Found], most: int, seed: int) -> list[int]:
    """The captions that are kept, in their order."""
    order = np.random.default_rng(seed).permutation(len(runs[0])).tolist()
    first = {row: [run[row]["rank"] == 1 for run in runs] for row in order}
    return sorted(sorted(order, key=lambda row: len(set(first[row])), reverse=True)[:most])


def _query(rows: Iterable[dict[str, Any]], number: dict[str, int]) -> dict[str, Any]:
    """One caption, and what each run found."""
    rows = list(rows)
    return {
        "caption": rows[0]["caption"],
        "right": number[rows[0]["video"]],
        "found": rows[0]["found"],
        "results": [
            {
                "rank": row["rank"],
                "top": [number[video] for video in row["top"]],
                "scores": [round(score, 3) for score in row["scores"]],
            }
            for row in rows
        ],
    }


def strip(shards: Shards | None, video: str) -> dict[str, str]:
    """`image`: frames side by side, evenly over the video; or `why` there is none."""
    if shards is None:
        return {"why": "the shards are gone"}
    if video not in shards.videos:
        return {"why": "not in the shards"}
    count = shards.num_frames(video)
    if not count:
        return {"why": shards.videos[video].error or "no frame could be decoded"}
    places = np.unique(np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)).tolist()
    image = Image.fromarray(np.concatenate(list(shards.frames(video, places)), axis=1))
    if image.height > HEIGHT:
        image = image.resize((round(image.width * HEIGHT / image.height), HEIGHT))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return {"image": data_uri(jpeg.getvalue(), "jpeg")}
