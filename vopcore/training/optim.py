"""The optimizer and its schedule: AdamW, parameters without decay, linear warm-up and cosine."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def build(
    parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float = 0.2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    no_decay: tuple[str, ...] = (),
) -> torch.optim.AdamW:
    """AdamW over named parameters (`tuned(clip).items()`); on a GPU its fused kernel.

    no_decay: parameters whose name contains one of these words are not decayed: `("bias",)` as
    Cross-Modal Adapter, `("bias", "prompts")` for prompts too, () for decay everywhere as VoP. AdamW
    always corrects its bias: the released Cross-Modal Adapter's BertAdam does not, and no optimizer that
    torch keeps does. Raises ValueError if there is nothing to train.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_exempt = any(word in name for word in no_decay)
        group = undecayed if is_exempt else decayed
        group.append(parameter)

    groups = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": weight_decay})
    if undecayed:
        groups.append({"params": undecayed, "weight_decay": 0.0})
    if not groups:
        raise ValueError("nothing to train: the method tunes no parameter")

    # None lets torch choose: on a CPU that is not the fused kernel.
    on_gpu = all(parameter.is_cuda for parameter in (*decayed, *undecayed))
    fused = True if on_gpu else None
    return torch.optim.AdamW(
        groups,
        lr=lr,
        betas=betas,
        eps=eps,
        fused=fused,
    )


def schedule(
    optimizer: torch.optim.Optimizer,
    steps: int,
    warmup: float = 0.1,
) -> LambdaLR:
    """Linear from 0 over the first `warmup` share of `steps`, then half a cosine down to 0, as in X-Pool.

    Call `step()` after each optimizer step. (Cross-Modal Adapter's cosine begins at step 0, so that its rate
    jumps from 1.0 to 0.98 where the warm-up ends.) Raises ValueError for a warm-up outside 0..1.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup: {warmup} is not a share of the run, in 0..1")

    warmup_steps = warmup * steps
    falling_steps = steps - warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps

        # The schedule is also asked after the last step.
        share = min(1, (step - warmup_steps) / falling_steps)
        angle = math.pi * share
        return (1 + math.cos(angle)) / 2

    return LambdaLR(optimizer, factor)
