"""Each method against tests/support/methods_reference.py: outputs and gradients, with short videos among full
ones."""

import open_clip
import pytest
import torch
from support.dgl_reference import DGLReference
from support.methods import FRAMES, batch, method, tiny_clip
from support.methods_reference import Reference
from support.mv_adapter_reference import MVAdapterReference
from support.prompt_switch_reference import PromptSwitchReference
from support.tempme_reference import TempMeReference

from vopcore.methods import METHODS, tune, tuned
from vopcore.retriever import Retriever

CLASSES = [open_clip.CLIP, open_clip.CustomTextCLIP]
REFERENCES = {  # of methods that change how a tower is run
    "tempme": TempMeReference,
    "prompt_switch": PromptSwitchReference,
    "dgl": DGLReference,
    "mv_adapter": MVAdapterReference,
}
REAL = [FRAMES, 2, 1]  # frames of the three videos of a batch


def both(name, cls, layers=3, **changes):
    """(text, real frame features) by vopcore, and by the reference; the tuned parameters; all in fp64."""
    tower = {"vision": {"layers": layers}}
    clip = tune(tiny_clip(cls, **tower), method(name, **changes), FRAMES)
    for parameter in tuned(clip).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    clip.double()
    pixels, tokens = batch(len(REAL))
    mask = torch.arange(FRAMES) < torch.tensor(REAL).unsqueeze(1)
    retriever = Retriever(clip, "mean").train()
    text, video = retriever(pixels, mask, tokens)
    weights = tiny_clip(cls, **tower).double().state_dict()
    reference = REFERENCES.get(name, Reference)(name, method(name, **changes), weights, tuned(clip))
    images = ((pixels.float() - retriever.mean) / retriever.std).double()
    wanted = [reference.video(x[:n]) for x, n in zip(images, REAL, strict=True)]
    texts = torch.stack([reference.text(t) for t in tokens])
    return (text, video[mask]), (texts, torch.cat(wanted)), tuned(clip)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", METHODS)
def test_outputs_and_gradients_are_those_of_the_equations(name, cls):
    compare(*both(name, cls))


@pytest.mark.parametrize(("frame_merges", "shares"), [(1, 0.3), (0, 0.5)])
def test_tempme_merges_within_frames_below_the_joining_layers(frame_merges, shares):
    options = {"frame_merges": frame_merges, "joined_share": shares, "share": shares}
    compare(*both("tempme", open_clip.CLIP, layers=5, **options))


def test_dgl_makes_prompts_by_a_transformer():
    compare(*both("dgl", open_clip.CLIP, space="transformer"))


def compare(outputs, wanted, parameters):
    for output, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, want, rtol=1e-9, atol=1e-9)
    if not parameters:
        return
    torch.manual_seed(5)
    weights = [torch.randn_like(output) for output in outputs]
    used = {n: p for n, p in parameters.items() if n != "logit_scale"}
    grads = [
        torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, ys, strict=True)), used.values())
        for ys in (outputs, wanted)
    ]
    for key, ours, theirs in zip(used, *grads, strict=True):
        assert theirs.norm() > 0, key
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item(), msg=key)


@pytest.mark.parametrize("changes", [{"prompts": 2, "depth": 2}])
def test_maple_at_full_depth_carries_nothing(changes):
    outputs, wanted, _ = both("maple", open_clip.CLIP, **changes)
    for output, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, want, rtol=1e-9, atol=1e-9)
