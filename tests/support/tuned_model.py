"""A tuned method in a folder with a gallery of real videos, as a run leaves it."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from support import ROOT
from support.video import write_video

from vopcore import clip as clips
from vopcore.methods import METHODS, load_tuned, save_tuned, tune
from vopcore.retriever import Retriever
from vopcore.tuned_model import ModelSettings, VideoVectors, save_model
from vopcore.video import choose, decode, stack

MODEL = str(ROOT / "conf/tiny_clip.json")
FRAMES, STORED, SIZE, WORDS = 4, 12, 32, 16
CAPTIONS = ["a red ball", "a blue square and then a green one", "nothing", "many words " * 40]
LENGTHS = {"long": 60, "short": 3, "middle": 30, "other": 45}  # frames; one video has fewer than FRAMES


class Made(NamedTuple):
    """What `make` wrote, and what must come out of it: of CAPTIONS and of all videos."""

    folder: Path
    paths: list[str]
    retriever: Retriever
    text: torch.Tensor  # [N, D]
    video: torch.Tensor  # [V, F, D]
    mask: torch.Tensor  # [V, F]

    @property
    def similarity(self) -> torch.Tensor:
        return self.retriever.similarity(self.text, self.video, self.mask)


@torch.no_grad()
def make(
    folder: Path, method: str = "vop_p", pooling: str = "mean", frozen: bool = True, **options: int
) -> Made:
    """A run's leavings, and the vectors that the plain loop of decode, `load_tuned` and `Retriever` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(write_video(folder / f"{name}.mp4", count)) for name, count in LENGTHS.items()]
    torch.manual_seed(5)
    clip = clips.load(MODEL, None)
    if frozen:
        save_file(clip.state_dict(), folder / "frozen.safetensors")
    plain = clips.share(clip)
    tune(clip, METHODS[method](**options), FRAMES)
    for parameter in (p for p in clip.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn_like(parameter)
    save_tuned(folder / "tuned.safetensors", clip, pooling)
    retriever = Retriever(load_tuned(plain, folder / "tuned.safetensors")).eval()
    text = retriever.text(clips.tokenizer(plain, WORDS)(CAPTIONS))
    looks = [decode(path, count=STORED, size=SIZE, sampler="segment").pixels for path in paths]
    stacked, mask = stack([look[choose(len(look), FRAMES, None)] for look in looks], FRAMES)
    video = retriever.video(torch.from_numpy(stacked).permute(0, 1, 4, 2, 3), mask)
    weights = str(folder / "frozen.safetensors") if frozen else None
    settings = ModelSettings(MODEL, weights, 5, WORDS, FRAMES, STORED, SIZE, "segment")
    gallery = VideoVectors(list(LENGTHS), retriever.vectors(video, mask).numpy())
    save_model(folder / "search", settings, folder / "tuned.safetensors", gallery)
    return Made(folder / "search", paths, retriever, text, video, mask)
