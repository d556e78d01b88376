"""The loss against its formula, and split over workers against one process."""

from dataclasses import replace
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.methods import FRAMES, batch, tuned_clip
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from vopcore.retriever import Retriever
from vopcore.training import loss as module
from vopcore.training.batches import Batch
from vopcore.training.distill import Lesson, distance
from vopcore.training.gradients import backward
from vopcore.training.loss import contrastive, loss_of, pair_numbers

PARTS = {1: [5], 2: [3, 2], 4: [2, 1, 1, 1]}  # pairs of each worker
CASES = [("vop_fp", "mean"), ("cross_modal_adapter", "query_aware")]


def data():
    pixels, tokens = batch(5)
    mask = torch.ones(5, FRAMES, dtype=torch.bool)
    mask[3, 1:] = False
    return pixels, mask, tokens


def make(name, pooling):
    return Retriever(tuned_clip(name, stir=0.3), pooling, learn_scale=True).train()


def gradients(retriever):
    return {name: p.grad.clone() for name, p in retriever.named_parameters() if p.requires_grad}


def one_process(name, pooling, learned=None):
    retriever = make(name, pooling)
    pixels, mask, tokens = data()
    loss = loss_of("softmax", *retriever(pixels, mask, tokens), mask, retriever, lesson=learned)
    loss.backward()
    return loss.detach(), gradients(retriever)


def test_the_loss_is_the_mean_of_both_cross_entropies():
    retriever = make("vop", "mean")
    pixels, mask, tokens = data()
    text, video = retriever(pixels, mask, tokens)
    logits = retriever.clip.logit_scale.exp() * retriever.similarity(text, video, mask)
    wanted = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(contrastive(text, video, mask, retriever), wanted)
    every = torch.ones_like(mask)
    with_none, with_ones = (contrastive(text, video, m, retriever) for m in (None, every))
    torch.testing.assert_close(with_none, with_ones)


def features(count=6):
    torch.manual_seed(3)
    text = torch.randn(count, 8, requires_grad=True)
    video = torch.randn(count, FRAMES, 8, requires_grad=True)
    return text, video


@pytest.mark.parametrize("rows", [6, 4, 1])
def test_the_sigmoid_loss_in_blocks_is_its_formula(monkeypatch, rows):
    retriever = make("vop", "mean")
    retriever.clip.logit_bias = torch.nn.Parameter(torch.tensor(-2.0))
    text, video = features()
    z = retriever.clip.logit_scale.exp() * retriever.similarity(text, video) + retriever.clip.logit_bias
    signs = 2 * torch.eye(6) - 1
    wanted = -F.logsigmoid(signs * z).sum() / 6
    leaves = [text, video, retriever.clip.logit_scale, retriever.clip.logit_bias]
    gradients = torch.autograd.grad(wanted, leaves)

    monkeypatch.setattr(module, "BLOCK", rows * 6 * FRAMES)
    loss = loss_of("sigmoid", text, video, None, retriever)
    torch.testing.assert_close(loss, wanted)
    for got, want in zip(torch.autograd.grad(loss, leaves), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_sigmoid_loss_of_a_model_without_a_bias_is_refused():
    with pytest.raises(ValueError, match=r"train\.loss: sigmoid needs a model with a logit_bias"):
        loss_of("sigmoid", *features(), None, make("vop", "mean"))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_pairs_that_share_a_caption_or_a_video_are_no_negatives(name):
    retriever = make("vop", "mean")
    retriever.clip.logit_bias = torch.nn.Parameter(torch.tensor(-2.0))
    text, video = features()
    videos = ["a", "b", "c", "d", "e", "a"]
    captions = ["one", "two", "one", "three", "four", "five"]
    left_out = {(0, 5), (5, 0), (0, 2), (2, 0)}

    cosines = retriever.similarity(text, video).detach()
    scale = retriever.clip.logit_scale.exp().detach()
    total = 0.0
    for i in range(6):
        if name == "softmax":
            kept = [j for j in range(6) if (i, j) not in left_out]
            right = scale * cosines[i, i]
            total += (scale * cosines[i, kept]).logsumexp(0) - right
            total += (scale * cosines[kept, i]).logsumexp(0) - right
            continue
        for j in range(6):
            sign = 1 if i == j else -1
            if (i, j) not in left_out:
                total -= F.logsigmoid(sign * (scale * cosines[i, j] - 2))
    wanted = total / (12 if name == "softmax" else 6)

    loss = loss_of(name, text, video, None, retriever, pair_numbers(videos, captions))
    torch.testing.assert_close(loss.detach(), wanted)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, [text, video]))


def noted(sizes, tensor):
    sizes.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
def test_the_loss_in_blocks_is_the_loss_and_holds_no_more_than_a_block(monkeypatch, pooling):
    retriever = make("vop", pooling)
    torch.manual_seed(0)
    text = torch.randn(33, 8, requires_grad=True)
    video = (text.detach().unsqueeze(1) + 0.5 * torch.randn(33, FRAMES, 8)).requires_grad_()
    mask = torch.rand(33, FRAMES) < 0.6
    mask[:, 1] = True
    leaves = [text, video, retriever.clip.logit_scale]
    logits = retriever.clip.logit_scale.exp() * retriever.similarity(text, video, mask)
    right = torch.arange(33)
    plain = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    wanted = torch.autograd.grad(plain, leaves)
    for rows in (33, 10, 1):
        monkeypatch.setattr(module, "BLOCK", rows * 33 * FRAMES)
        held = []
        with torch.autograd.graph.saved_tensors_hooks(partial(noted, held), lambda x: x):
            loss = contrastive(text, video, mask, retriever)
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-7)
        for got, gradient in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
            torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-7)
        assert max(held) <= 33 * -(-33 // rows)  # logsumexp of columns for each block, but no block


def lesson(count, pooling, weight=0.7):
    generator = torch.Generator().manual_seed(9)
    text = torch.randn(count, 12, generator=generator)
    shape = (count, 12) if pooling == "mean" else (count, FRAMES, 12)
    video = torch.randn(shape, generator=generator)
    if pooling == "query_aware":
        video[1, 2:] = 0  # padding
    return Lesson(text, video, pooling, scale=3.0, weight=weight)


def taught(lesson):
    """A teacher's similarities, pair by pair."""
    count = len(lesson.text)
    cosines = torch.zeros(count, count)
    for i, text in enumerate(lesson.text):
        for j, video in enumerate(lesson.video):
            if lesson.pooling == "query_aware":
                real = video[video.any(dim=-1)]
                video = ((real @ text) / 5).softmax(0) @ real
            cosines[i, j] = F.cosine_similarity(text, video, dim=0)
    return cosines


def pearson_distance(student, teacher):
    """1 - numpy's correlation of the softmaxed rows, and of the softmaxed columns; each a mean."""
    total = 0
    for student_logits, teacher_logits in ((student, teacher), (student.T, teacher.T)):
        for row, wanted in zip(student_logits, teacher_logits, strict=True):
            total += 1 - np.corrcoef(row.softmax(0).numpy(), wanted.softmax(0).numpy())[0, 1]
    return total / len(student)


@pytest.mark.parametrize("taught_by", ["mean", "query_aware"])
@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
def test_a_lesson_adds_the_pearson_distance_from_the_teachers_similarities(monkeypatch, pooling, taught_by):
    retriever = make("vop", pooling)
    torch.manual_seed(0)
    text = torch.randn(7, 8, requires_grad=True)
    video = torch.randn(7, FRAMES, 8, requires_grad=True)
    learned = lesson(7, taught_by)

    cosines = retriever.similarity(text, video).detach()
    scale = retriever.clip.logit_scale.exp().detach()
    far = pearson_distance((scale * cosines).double(), (3.0 * taught(learned)).double())
    wanted = contrastive(text, video, None, retriever).item() + 0.7 * far

    leaves = [text, video, retriever.clip.logit_scale]
    loss = loss_of("softmax", text, video, None, retriever, lesson=learned)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)

    # in blocks of two captions the same, with the same gradients
    monkeypatch.setattr(module, "BLOCK", 2 * 7 * FRAMES)
    in_blocks = loss_of("softmax", text, video, None, retriever, lesson=learned)
    torch.testing.assert_close(in_blocks, loss, rtol=1e-6, atol=1e-6)
    for got, gradient in zip(torch.autograd.grad(in_blocks, leaves), gradients, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6)


def test_a_student_that_is_its_teacher_is_at_no_distance():
    learned = lesson(6, "mean")
    logits = learned.scale * learned.similarity()
    assert distance(logits, logits).abs() < 1e-6
    assert distance(-logits, logits) > 1
    assert distance(logits[:1, :1], logits[:1, :1]).isfinite()


def worker(rank, folder):
    """Every number of workers in turn, each a process group of its own."""
    torch.set_num_threads(1)
    for workers, parts in PARTS.items():
        if rank < workers:
            meeting = f"file://{folder}/{workers}-workers"
            distributed.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=workers, timeout=timedelta(seconds=60)
            )
            for case in CASES:
                one_worker(*case, rank, parts, folder)
            distributed.destroy_process_group()


def one_worker(name, pooling, rank, parts, folder):
    here = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
    retriever = make(name, pooling)
    model = DistributedDataParallel(retriever)
    pixels, mask, tokens = (x[here] for x in data())
    loss = contrastive(*model(pixels, mask, tokens), mask, retriever)
    loss.backward()
    torch.save((loss.detach(), gradients(retriever)), f"{folder}/{name}-{len(parts)}-{rank}.pt")
    model.zero_grad()
    batch_here = Batch(["v"] * len(mask), pixels, mask, tokens)
    loss = backward(model, retriever, batch_here, 1, (0, 0))
    torch.save((loss, gradients(retriever)), f"{folder}/{name}-{len(parts)}-{rank}-micro.pt")

    whole = lesson(5, "query_aware")
    own = replace(whole, text=whole.text[here], video=whole.video[here])
    with_lesson = partial(loss_of, "softmax", lesson=own)
    for micro_batch, ending in ((None, "-lesson"), (1, "-lesson-micro")):
        model.zero_grad()
        loss = backward(model, retriever, batch_here, micro_batch, (0, 0), with_lesson)
        torch.save((loss, gradients(retriever)), f"{folder}/{name}-{len(parts)}-{rank}{ending}.pt")


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What 1, 2 and 4 workers computed, by one start of four processes."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.set_forkserver_preload(["support.methods", "vopcore.training.loss"])
    multiprocessing.start_processes(worker, (str(folder),), nprocs=4, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("name", "pooling"), CASES)
@pytest.mark.parametrize("count", PARTS)
@pytest.mark.parametrize("passes", ["", "-micro", "-lesson", "-lesson-micro"])
def test_workers_with_uneven_parts_have_the_gradients_of_one_process(workers, count, name, pooling, passes):
    learned = lesson(5, "query_aware") if "lesson" in passes else None
    loss, wanted = one_process(name, pooling, learned)
    for rank in range(count):
        worker_loss, got = torch.load(workers / f"{name}-{count}-{rank}{passes}.pt", weights_only=True)
        torch.testing.assert_close(worker_loss, loss)
        assert got.keys() == wanted.keys()
        for key, gradient in got.items():
            torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-6, msg=key)
