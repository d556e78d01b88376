"""What a finished run, the teacher, says of a batch: how alike each caption and each video are to it.

A teacher's towers see every caption and every video once. Their vectors are kept, and the similarity of any
caption and any video follows from them: with `query_aware` pooling those of each frame, so a student with one
vector per video learns from how each caption weighs the frames.

The idea and the distance are TeachCLIP's (Tian et al., CVPR 2024, https://github.com/ruc-aimc-lab/TeachCLIP).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vopcore.retriever import Pooling, mean_similarity, query_aware_similarity

# Added to norms: a batch of one pair has nothing to be correlated.
TINY = 1e-8


@dataclass(frozen=True)
class Lesson:
    """A teacher's vectors of a batch, caption i belonging to video i.

    text [N, D]; video: `Retriever.vectors`, [N, D] or [N, F, D]; scale: of its similarities, as logits;
    weight: of what is to be learned from it, beside the loss.
    """

    text: Tensor
    video: Tensor
    pooling: Pooling
    scale: float
    weight: float

    def similarity(self) -> Tensor:
        """Float32 [N, N]: a row per caption."""
        # a mean is a video of one frame
        if self.pooling == "mean":
            return mean_similarity(self.text, self.video[:, None], None)
        return query_aware_similarity(self.text, self.video, self.video.any(dim=-1))


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Pearson distance of softmaxed rows, plus that of softmaxed columns; logits [N, N], a scalar.

    1 - corr(softmax(student_i), softmax(teacher_i)), as TeachCLIP's train.py computes it.
    """
    return _row_distance(student, teacher) + _row_distance(student.T, teacher.T)


def _row_distance(student: Tensor, teacher: Tensor) -> Tensor:
    learned = student.softmax(dim=1)
    taught = teacher.softmax(dim=1)

    # Probabilities of a row have the same mean, whoever gives them.
    mean = 1 / student.shape[1]
    correlation = F.cosine_similarity(learned - mean, taught - mean, dim=1, eps=TINY)
    return (1 - correlation).mean()


class Teacher:
    """The vectors of all captions and videos that are trained on.

    text Float [C, D] of `captions`; video: `Retriever.vectors` of `videos`, [V, D] or [V, F, D].
    """

    def __init__(
        self,
        captions: Sequence[str],
        videos: Sequence[str],
        text: Tensor,
        video: Tensor,
        pooling: Pooling,
        scale: float,
    ) -> None:
        self.text = text
        self.video = video
        self.pooling = pooling
        self.scale = scale
        self._caption_rows = {caption: row for row, caption in enumerate(captions)}
        self._video_rows = {video: row for row, video in enumerate(videos)}

    def lesson(
        self,
        captions: Sequence[str],
        videos: Sequence[str],
        weight: float,
        device: torch.device,
    ) -> Lesson:
        """What it says of a batch, on the device of the student."""
        caption_rows = [self._caption_rows[caption] for caption in captions]
        video_rows = [self._video_rows[video] for video in videos]
        return Lesson(
            text=self.text[caption_rows].float().to(device),
            video=self.video[video_rows].float().to(device),
            pooling=self.pooling,
            scale=self.scale,
            weight=weight,
        )

    def save(self, path: str) -> None:
        """Write the vectors, in half precision: those of 180,000 captions and of 9,000 videos of 12 frames
        are 300 MB.
        """
        tensors = {
            "text": self.text.half().contiguous(),
            "video": self.video.half().contiguous(),
        }
        save_file(tensors, path, {"pooling": self.pooling, "scale": repr(self.scale)})

    @classmethod
    def load(
        cls,
        path: str,
        captions: Sequence[str],
        videos: Sequence[str],
    ) -> "Teacher":
        """What `save` has written, of these captions and videos."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            return cls(
                captions,
                videos,
                file.get_tensor("text"),
                file.get_tensor("video"),
                metadata["pooling"],
                float(metadata["scale"]),
            )
