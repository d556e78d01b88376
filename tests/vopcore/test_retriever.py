"""Similarities against the direct formulas; what the retriever refuses; memory of the query-aware blocks."""

import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.methods import batch, tiny_clip, tuned_clip

from vopcore import retriever as module
from vopcore.retriever import Retriever, query_aware_similarity


def direct(pooling, text, video, mask):
    """Each pair on its own, with a video vector per pair, from the real frames alone, in fp64."""
    out = torch.empty(len(text), len(video), dtype=torch.float64)
    for i, t in enumerate(text.double()):
        for j, frames in enumerate(video.double()):
            f = frames[mask[j]]
            if pooling == "mean":
                v = (f / f.norm(dim=1, keepdim=True)).mean(dim=0)
            else:
                v = ((f @ t / 5).softmax(dim=0).unsqueeze(1) * f).sum(dim=0)
            out[i, j] = (t @ v) / (t.norm() * v.norm())
    return out


@settings(max_examples=40, deadline=None)
@given(
    texts=st.integers(1, 7), videos=st.integers(1, 6), frames=st.integers(1, 5), seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 3.0]), pooling=st.sampled_from(["mean", "query_aware"]),
)  # fmt: skip
def test_similarity_is_the_direct_formula_over_real_frames(texts, videos, frames, seed, scale, pooling):
    generator = torch.Generator().manual_seed(seed)
    text = scale * torch.randn(texts, 8, generator=generator)
    video = scale * torch.randn(videos, frames, 8, generator=generator)
    mask = torch.rand(videos, frames, generator=generator) < 0.6
    mask[:, seed % frames] = True
    got = Retriever(tiny_clip(), pooling).similarity(text, video, mask)
    torch.testing.assert_close(got.double(), direct(pooling, text, video, mask), rtol=0, atol=1e-5)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    torch.manual_seed(0)
    text, video = torch.randn(11, 8), torch.randn(9, 4, 8)
    mask = torch.rand(9, 4) < 0.7
    mask[:, 0] = True
    whole = query_aware_similarity(text, video, mask)
    monkeypatch.setattr(module, "TEXTS", 3)
    monkeypatch.setattr(module, "PAIRS", 3 * 4 * 2)
    torch.testing.assert_close(query_aware_similarity(text, video, mask), whole)


def test_query_aware_gradients_are_those_of_the_direct_formula():
    torch.manual_seed(0)
    text, video = torch.randn(4, 8, requires_grad=True), torch.randn(3, 5, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    ours = Retriever(tiny_clip(), "query_aware").similarity(text, video, mask)
    weights = torch.randn(4, 3)
    grads = torch.autograd.grad((weights * ours).sum(), (text, video))
    f, t = video.unsqueeze(0), text[:, None, None]
    w = ((t * f).sum(-1) / 5).masked_fill(~mask, -float("inf")).softmax(-1)
    v = (w.unsqueeze(-1) * f).sum(2)
    wanted = torch.cosine_similarity(text.unsqueeze(1), v, dim=-1)
    for got, want in zip(grads, torch.autograd.grad((weights * wanted).sum(), (text, video)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_padding_does_not_outweigh_real_frames_that_are_far_from_the_text():
    text, video = torch.full((1, 8), 30.0), torch.full((1, 3, 8), -30.0)
    mask = torch.tensor([[True, False, False]])
    similarity = Retriever(tiny_clip(), "query_aware").similarity(text, video, mask)
    torch.testing.assert_close(similarity, torch.tensor([[-1.0]]))


def test_padding_that_is_not_a_number_changes_nothing():
    text, video = torch.randn(4, 8), torch.randn(3, 2, 8)
    padded = torch.cat([video, torch.full((3, 1, 8), float("nan"))], dim=1)
    mask = torch.tensor([[True, True, False]]).expand(3, -1)
    for pooling in ("mean", "query_aware"):
        retriever = Retriever(tiny_clip(), pooling)
        torch.testing.assert_close(
            retriever.similarity(text, padded, mask), retriever.similarity(text, video)
        )


def test_similarity_is_fp32_under_autocast_and_for_bf16_features():
    text, video = torch.randn(4, 8).bfloat16(), torch.randn(3, 2, 8).bfloat16()
    for pooling in ("mean", "query_aware"):
        retriever = Retriever(tiny_clip(), pooling)
        with torch.autocast("cpu", torch.bfloat16):
            got = retriever.similarity(text, video)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, retriever.similarity(text.float(), video.float()))


MEMORY = """
import resource, torch
from vopcore.retriever import query_aware_similarity
torch.manual_seed(0)
text, video = torch.randn(600, 64), torch.randn(1000, 64, 64)
mask = torch.ones(1000, 64, dtype=torch.bool)
query_aware_similarity(text[:2], video[:2], mask[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
query_aware_similarity(text, video, mask)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="asks the system for its peak")
def test_query_aware_memory_is_bounded_by_the_block_not_by_the_pairs():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # all pairs at once: 600 x 1000 x 64 x 4 bytes = 146 MiB, several times; Gram 16, result 2, arguments
    # are there
    assert float(run.stdout) < 120


@torch.no_grad()
def test_pixels_are_normalised_as_the_clip_wants():
    clip = tiny_clip()
    retriever = Retriever(clip)
    pixels, _ = batch()
    mean, std = (torch.tensor(clip.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    wanted = clip.encode_image(((pixels.float() / 255 - mean) / std).flatten(0, 1))
    torch.testing.assert_close(retriever.video(pixels).flatten(0, 1), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clip_of_open_clip_itself_needs_nothing_of_ours():
    clip = tiny_clip()
    pixels, tokens = batch()
    wanted = Retriever(clip)(pixels, None, tokens)
    del clip.model_name
    assert all(torch.equal(x, y) for x, y in zip(Retriever(clip)(pixels, None, tokens), wanted, strict=True))
    with pytest.raises(ValueError, match=r"CLIP reads torch.uint8"):
        Retriever(clip).video(pixels.float())
    del clip.visual.preprocess_cfg
    torch.testing.assert_close(
        Retriever(clip).mean.flatten() / 255, torch.tensor([0.48145, 0.45783, 0.40821]), atol=1e-4, rtol=0
    )


def test_training_mode_leaves_the_frozen_clip_in_eval_mode():
    clip = tiny_clip(vision={"patch_dropout": 0.9})
    retriever = Retriever(clip).train()
    pixels, _ = batch()
    assert torch.equal(retriever.video(pixels), retriever.video(pixels))


def test_logit_scale_is_learnt_only_if_asked():
    assert not any(p.requires_grad for p in Retriever(tuned_clip("zero_shot")).parameters())
    asked = Retriever(tuned_clip("zero_shot"), learn_scale=True)
    assert [name for name, p in asked.named_parameters() if p.requires_grad] == ["clip.logit_scale"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            torch.zeros(2, 4, 3, 16, 16),
            r"frames are torch.float32 \[2, 4, 3, 16, 16\]; tiny reads torch.uint8",
        ),
        (torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8), r"reads torch.uint8 \[B, F, 3, 16, 16\]"),
        (torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8), r"\[2, 4, 3, 32, 32\]"),
    ],
)
def test_frames_of_another_kind_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        Retriever(tiny_clip()).video(frames)


def test_a_video_without_a_real_frame_is_refused():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="video 1 of 2 has no real frame in its mask"):
        Retriever(tiny_clip()).similarity(torch.randn(3, 8), torch.randn(2, 2, 8), mask)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling: max is neither mean nor query_aware"):
        Retriever(tiny_clip(), "max")


@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
def test_a_feature_of_zeros_is_alike_to_nothing(pooling):
    torch.manual_seed(0)
    text, video = torch.randn(3, 8), torch.randn(4, 2, 8)
    text[1] = 0
    video[2] = 0
    similarity = Retriever(tiny_clip(), pooling).similarity(text, video)
    assert (similarity[1] == 0).all()
    assert (similarity[:, 2] == 0).all()
    assert (similarity[0, :2] != 0).all()


def test_pixels_are_normalised_where_the_clip_is():
    clip = tiny_clip().to("meta")
    retriever = Retriever(clip)
    assert retriever.mean.device == retriever.std.device == clip.logit_scale.device
