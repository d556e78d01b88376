"""A student of one vector per video follows a teacher that weighs frames by each caption."""

import numpy as np
import pytest
import torch
from support.methods import method, tiny_clip, tuned_clip
from support.tuning import CAPTIONS, make_shards, tokenize

from vopcore.config import Train
from vopcore.config.sections import Distill
from vopcore.embedder import Embedder
from vopcore.methods import tune
from vopcore.retriever import Retriever
from vopcore.training.batches import TrainingBatches, stack_frames
from vopcore.training.distill import Teacher
from vopcore.training.trainer import Tuner, train

FRAMES = 4
VIDEOS = sorted(CAPTIONS)
TEXTS = [caption for video in VIDEOS for caption in CAPTIONS[video]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), short=3)


def taught() -> Retriever:
    """A stirred CLIP, so that it says something else than the student's."""
    return Retriever(tuned_clip("bias", stir=0.5), "query_aware").eval()


@pytest.fixture(scope="module")
def teacher(shards):
    retriever = taught()
    embedder = Embedder(retriever, tokenize)

    def read(videos):
        return stack_frames(shards, videos, FRAMES, [None] * len(videos))

    scale = float(retriever.clip.logit_scale.exp())
    video = embedder.videos(VIDEOS, read)
    return Teacher(TEXTS, VIDEOS, embedder.texts(TEXTS), video, "query_aware", scale)


@torch.no_grad()
def similarities(retriever, shards, captions, videos):
    """Float[N, V] of a retriever, from the pixels."""
    pixels, mask = stack_frames(shards, videos, FRAMES, [None] * len(videos))
    text = retriever.eval().text(tokenize(captions))
    return retriever.similarity(text, retriever.video(pixels, mask), mask)


def correlation(student, teacher):
    """Mean over captions of how alike two rows of similarities are."""
    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))


def student(shards, teacher, distill):
    """A student with mean pooling after tuning: the same but for its teacher."""
    torch.manual_seed(0)
    retriever = Retriever(tune(tiny_clip(), method("lora"), FRAMES), "mean")
    batches = TrainingBatches(shards, CAPTIONS, tokenize, frames=FRAMES, batch_size=8, draw="one", seed=0)
    settings = Train(epochs=12, batch_size=8, lr=1e-2, weight_decay=0.0, distill=distill, micro_batch=4)
    tuner = Tuner(retriever, settings, batches.steps_per_epoch, 0, teacher=teacher)
    train(tuner, batches, settings.epochs)
    return retriever


def test_a_student_with_one_vector_per_video_follows_a_teacher_that_weighs_frames(shards, teacher):
    captions = [CAPTIONS[video][0] for video in VIDEOS]
    wanted = teacher.lesson(captions, VIDEOS, 1.0, CPU).similarity()
    distances = []
    for taught_by, distill in ((None, None), (teacher, Distill(teacher="runs:/a", weight=5))):
        tuned = student(shards, taught_by, distill)
        distances.append(correlation(similarities(tuned, shards, captions, VIDEOS), wanted))
    alone, followed = distances
    assert followed > alone + 0.2


def test_what_is_kept_of_a_teacher_gives_the_similarities_of_its_towers(teacher, shards, tmp_path):
    teacher.save(str(tmp_path / "vectors.safetensors"))
    kept = Teacher.load(str(tmp_path / "vectors.safetensors"), TEXTS, VIDEOS)
    backwards = VIDEOS[::-1]
    captions = [CAPTIONS[video][-1] for video in backwards]
    own = similarities(taught(), shards, captions, backwards)

    now = teacher.lesson(captions, backwards, 1.0, CPU)
    later = kept.lesson(captions, backwards, 1.0, CPU)
    torch.testing.assert_close(now.similarity(), own, rtol=0, atol=1e-5)
    torch.testing.assert_close(later.similarity(), own, rtol=0, atol=2e-3)
    assert (later.scale, later.pooling) == (now.scale, "query_aware")
