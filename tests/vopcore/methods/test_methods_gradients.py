"""Gradients of every method: how far down they go, the same with checkpointing and when compiled."""

import pytest
import torch
from support.methods import CLASSES, TRAINED, batch, tuned_clip

from vopcore.methods import tuned
from vopcore.retriever import Retriever
from vopcore.training.loss import contrastive


def first_layers_without_gradient(name):
    """The modules of a tiny CLIP whose outputs must not ask for a gradient."""
    vision, text = "visual.transformer.resblocks", "transformer.resblocks"
    below = ["visual.conv1", "visual.ln_pre", "token_embedding"]
    if name == "proj":
        return [*below, f"{vision}.2", f"{text}.1", "visual.ln_post", "ln_final"]
    return [*below, f"{vision}.1", f"{text}.0"] if name == "partial" else below


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("full", "bias")])
def test_nothing_below_the_first_tuned_layer_keeps_a_graph(name):
    clip = tuned_clip(name)
    asks = {}
    modules = dict(clip.named_modules())
    for key in first_layers_without_gradient(name):
        modules[key].register_forward_hook(lambda _m, _x, y, key=key: asks.update({key: y.requires_grad}))
    pixels, tokens = batch()
    Retriever(clip)(pixels, None, tokens)
    assert asks == dict.fromkeys(asks, False)
    assert len(asks) >= 3


def loss_and_gradients(retriever, compiled=None):
    pixels, tokens = batch()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    outputs = (retriever if compiled is None else compiled)(pixels, mask, tokens)
    loss = contrastive(*outputs, mask, retriever)
    return [loss, *torch.autograd.grad(loss, tuned(retriever.clip).values())]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", TRAINED)
def test_gradient_checkpointing_changes_nothing(name, cls):
    retriever = Retriever(tuned_clip(name, cls, stir=0.3)).train()
    plain = loss_and_gradients(retriever)
    retriever.clip.set_grad_checkpointing(True)
    torch.testing.assert_close(loss_and_gradients(retriever), plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["vop", "cross_modal_adapter", "vop_fp", "lora", "adapter_ffn"])
def test_compilation_into_one_graph_changes_nothing(name):
    torch._dynamo.reset()
    retriever = Retriever(tuned_clip(name, stir=0.3))
    plain = loss_and_gradients(retriever)
    compiled = torch.compile(retriever, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(retriever, compiled), plain, rtol=1e-4, atol=1e-6)


def test_compilation_of_the_context_model_changes_nothing():
    torch._dynamo.reset()
    retriever = Retriever(tuned_clip("vop_c", stir=0.3))
    plain = loss_and_gradients(retriever)
    compiled = torch.compile(retriever, backend="aot_eager")  # Dynamo leaves the LSTM out of its graphs
    torch.testing.assert_close(loss_and_gradients(retriever, compiled), plain, rtol=1e-4, atol=1e-6)
