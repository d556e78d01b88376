"""A training step of cross_modal_adapter against the released implementation, which is run, not copied.

    git clone https://github.com/LeapLabTHU/Cross-Modal-Adapter /tmp/released
    python tests/benchmarks/bench_released.py /tmp/released [batch frames steps]

ViT-B/32 with random weights, the same for both, 32 words, fp32, on the CPU; query-aware pooling, AdamW and
clipping as the release's script sets them. The steps take turns; the least CPU time of each is compared, and
the losses of the first step, which must be equal.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from vopcore.clip import blank
from vopcore.config import Train
from vopcore.methods import METHODS, tune
from vopcore.retriever import Retriever
from vopcore.training.batches import Batch
from vopcore.training.trainer import Tuner

OPTIONS = Namespace(
    max_words=32, max_frames=12, loose_type=True, sim_header="meanP", linear_patch="2d", q_score=1,
    q_score_proj=0, q_score_temp=5, linspace_samp=None, v_emb_norm=0, t_emb_norm=0, v_agg_norm=0, jcl=0,
    intra_sim=0, local_rank=0, rank=0, world_size=1, adapter_reduction_dims=8, adapter_share_dim=16,
    adapter_non_linearity="quick_gelu", adapter_dropout=0.0, adapter_convert2fp16=False,
    adapter_init_std=0.01, adapter_share_use_non_linearity=False,
)  # fmt: skip
NAMES = {  # theirs, stacked over layers and sites, by ours in a block
    "{}_adapter_down_weight": "down_weight",
    "{}_adapter_down_bias": "down_bias",
    "{}_adapter_up_unique_weight": "up.0.weight",
    "{}_adapter_up_unique_bias": "up.0.bias",
    "vt_adapter_up_share_weight": "up.1.weight",
    "vt_adapter_up_share_bias": "up.1.bias",
}


def main(folder: str, batch_size: int, frames: int, steps: int) -> None:
    """Print both times, their ratio, and both losses."""
    torch.manual_seed(0)
    clip = tune(blank("ViT-B-32-quickgelu"), METHODS["cross_modal_adapter"](), frames)
    retriever = Retriever(clip, pooling="query_aware")
    theirs = released(folder, clip)
    tuner = Tuner(retriever, Train(epochs=10, warmup=0, lr=1e-5), 10, seed=0)
    tuner.model.train()
    batch = random_batch(batch_size, frames)
    pixels = (batch.frames.float() - retriever.mean) / retriever.std
    tuned = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=1e-5, weight_decay=0.2)

    def their_step() -> float:
        ones = torch.ones_like(batch.tokens)
        loss = theirs(batch.tokens, ones, ones, pixels, batch.mask.long())
        loss.backward()
        nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    ours, released_ = [], []
    for _ in range(steps):
        released_.append(timed(their_step))
        ours.append(timed(lambda: tuner.step(batch)[0]))
    mine, other = min(t for t, _ in ours), min(t for t, _ in released_)
    print(f"batch {batch_size}, {frames} frames, {torch.get_num_threads()} threads, CPU seconds of a step")
    print(f"released {other:.2f}   vopcore {mine:.2f}   {other / mine:.2f} times faster")
    print(f"loss of the first step: {released_[0][1]:.6f} and {ours[0][1]:.6f}")


def timed(step: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of a step, and its loss."""
    began = time.process_time()
    loss = step()
    return time.process_time() - began, loss


def random_batch(size: int, frames: int) -> Batch:
    """Random pixels; captions of 8 to 20 words, which is what MSR-VTT's are."""
    pixels = torch.randint(256, (size, frames, 3, 224, 224), dtype=torch.uint8)
    tokens = torch.randint(1, 49405, (size, 32))
    tokens[:, 0] = 49406
    for row, end in zip(tokens, torch.randint(9, 22, (size,)).tolist(), strict=True):
        row[end], row[end + 1 :] = 49407, 0
    return Batch([str(i) for i in range(size)], pixels, torch.ones(size, frames, dtype=torch.bool), tokens)


def released(folder: str, clip: nn.Module) -> nn.Module:
    """The released model with the weights of ours; only its adapters require gradients."""
    sys.path.insert(0, folder)
    from modules.modeling_jointvt_upshare_adapter import CLIP4Clip
    from modules.module_cross import CrossConfig

    dist.init_process_group("gloo", "tcp://127.0.0.1:29533", rank=0, world_size=1)
    weights = {name: value for name, value in clip.state_dict().items() if ".ls_" not in name}
    model = CLIP4Clip(CrossConfig(512, max_position_embeddings=128), dict(weights), OPTIONS).float()
    theirs = {f"clip.{name}": value for name, value in weights.items()}
    for tower, at in (("visual", "visual.transformer"), ("text", "transformer")):
        for name, ours in NAMES.items():
            stacked = [
                clip.get_parameter(f"{at}.resblocks.{layer}.{site}.1.{ours}")
                for layer in range(12)
                for site in ("ls_1", "ls_2")
            ]
            theirs[f"clip.{name.format(tower)}"] = torch.stack(stacked).detach()
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not [name for name in (*missing, *unexpected) if "clip." in name and "attn_mask" not in name], (
        missing,
        unexpected,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    return model.train()


if __name__ == "__main__":
    size, count, number = (*sys.argv[2:], *("16", "12", "2")[len(sys.argv) - 2 :])
    main(sys.argv[1], int(size), int(count), int(number))
