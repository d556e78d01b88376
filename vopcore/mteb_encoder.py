"""A tuned model as an encoder of MTEB, whose video retrieval tasks then score it.

    import mteb

    from vopcore.mteb_encoder import TunedEncoder
    from vopcore.tuned_model import TunedModel

    encoder = TunedEncoder(TunedModel(folder), "me/vop_p-msvd")
    mteb.evaluate(encoder, mteb.get_tasks(tasks=["MSVDT2VRetrieval"]))

Only `mteb_model_meta` asks for `mteb` itself, `encode` for `datasets`, which comes with it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vopcore.tuned_model import TunedModel

VIDEOS_AT_ONCE = 32


class TunedEncoder:
    """What MTEB asks of an encoder (`mteb.models.EncoderProtocol`), for texts and for videos.

    Frames are taken, cut and resized as when the model was measured: MTEB's own decoding is not used. name:
    ORG/NAME, under which MTEB keeps the scores.
    """

    def __init__(self, model: TunedModel, name: str = "vopcore/tuned") -> None:
        self._model = model
        self._name = name

    @property
    def mteb_model_meta(self) -> Any:  # noqa: ANN401 - mteb is an extra
        """Under which name and revision MTEB keeps the scores; the revision is the tuned weights' hash."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        return ModelMeta(
            loader=None,
            name=self._name,
            revision=self._model.tuned_hash,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.CUSTOM,
            use_instructions=False,
            training_datasets=None,
            modalities=["text", "video"],
        )

    def encode(
        self,
        inputs: Any,  # noqa: ANN401 - a DataLoader over a data set of Hugging Face
        *,
        task_metadata: object = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: object = None,
        **options: object,
    ) -> np.ndarray:
        """Vectors of the texts [N, D], or of the videos: [N, D], or [N, F, D] with `pooling: query_aware`.

        Raises ValueError where the rows hold neither, or both; and naming a video that cannot be decoded.
        """
        rows = inputs.dataset
        columns = {"text", "video"} & set(rows.column_names)
        if columns == {"text"}:
            return self._model.embed_captions(list(rows["text"])).cpu().numpy()
        if columns == {"video"}:
            return self._encode_videos(rows)
        raise ValueError(
            f"a tuned model encodes texts or videos, and these rows hold {', '.join(rows.column_names)}"
        )

    def _encode_videos(self, rows: Any) -> np.ndarray:  # noqa: ANN401 - a data set of Hugging Face
        from datasets import Video

        # Files as they are: with its decoder MTEB would choose the frames.
        files = rows.cast_column("video", Video(decode=False))
        vectors = []
        for start in range(0, len(files), VIDEOS_AT_ONCE):
            chunk = files[start : start + VIDEOS_AT_ONCE]["video"]
            with tempfile.TemporaryDirectory() as folder:
                paths = [_local(video, Path(folder, str(row))) for row, video in enumerate(chunk)]
                vectors.append(self._model.embed_videos(paths).cpu().numpy())
        return np.concatenate(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401 - arrays
        """Of N and M vectors of `encode`, texts and videos or the other way round: float32 [N, M]."""
        left, right = torch.as_tensor(embeddings1), torch.as_tensor(embeddings2)
        if left.ndim > right.ndim:
            return self._model.similarity(right, left).T
        return self._model.similarity(left, right)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401
        """Of N vectors and as many others, each with its own: float32 [N]."""
        pairs = zip(
            torch.as_tensor(embeddings1),
            torch.as_tensor(embeddings2),
            strict=True,
        )
        return torch.stack([self.similarity(left[None], right[None])[0, 0] for left, right in pairs])


def _local(video: Mapping[str, Any], beside: Path) -> str:
    """The path of a row's video, whose bytes are written to `beside` where it has no file."""
    if video["bytes"] is None:
        return str(video["path"])
    beside.write_bytes(video["bytes"])
    return str(beside)
