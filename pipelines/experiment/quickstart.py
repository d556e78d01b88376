"""What the quickstart needs before it starts: its videos, and the small CLIP that it then freezes.

Both are made only where the config has `shapes`; real runs have videos and a published CLIP.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.command.progress import Bar
from vopcore.clip import load, tokenizer, towers
from vopcore.config import ConfigError, RunConfig, Shapes, backbone, fingerprint
from vopcore.datasets import shapes
from vopcore.storage import Store, writer_lock
from vopcore.training.pretrain import StillsTraining

RECIPE = "shapes.json"  # beside captions.jsonl: what was rendered

# the small CLIP gains nothing from more, and other work on the machine goes on
THREADS = 2
CHECKPOINT_EVERY = 25  # steps


def render_videos(config: RunConfig) -> None:
    """Render the videos that `shapes` describes, unless they are there or the config has no `shapes`.

    Raises ConfigError where `data.root` holds videos of other settings, or somebody's own.
    """
    if config.shapes is None:
        return
    root = Path(config.data.root)
    recipe = {
        "videos": config.shapes.videos,
        "twins": config.shapes.twins,
        "seed": config.shapes.seed,
        "version": shapes.VERSION,
    }

    if (root / "captions.jsonl").is_file():
        _check_recipe(root, recipe)
        return

    with writer_lock(root, wait=True, tell=lambda line: print(line, file=sys.stderr, flush=True)):
        # another command has rendered them while this one waited
        if (root / "captions.jsonl").is_file():
            _check_recipe(root, recipe)
            return
        Store(root).write(RECIPE, json.dumps(recipe).encode())
        _render(root, config.shapes)


def _render(root: Path, settings: Shapes) -> None:
    num_videos = settings.videos + 2 * settings.twins
    with Bar("render", num_videos, "videos") as bar:
        rendered = shapes.render(root, settings.videos, settings.twins, settings.seed)
        for count, _ in enumerate(rendered, 1):
            bar.show(count)


def _check_recipe(root: Path, recipe: dict[str, int]) -> None:
    file = root / RECIPE
    rendered = json.loads(file.read_text()) if file.is_file() else None
    if rendered != recipe:
        raise ConfigError(
            f"data.root: {root} holds videos that were rendered with other settings ({rendered}, now"
            f" {recipe}); delete that folder, or set data.root=... to a new one"
        )


def with_small_clip(config: RunConfig) -> RunConfig:
    """With `shapes`: pretrain its small CLIP on stills, unless it is there, and name its weights."""
    if config.shapes is None:
        return config
    pretraining = config.shapes.pretraining
    key = fingerprint([pretraining.model_dump(), config.shapes.seed, backbone(config.clip), shapes.VERSION])
    weights = Path(config.output) / f"tiny_clip-{key}.safetensors"
    if not weights.is_file():
        _pretrain(config, weights)
    clip = config.clip.model_copy(update={"pretrained": str(weights)})
    return config.model_copy(update={"clip": clip})


def _pretrain(config: RunConfig, weights: Path) -> None:
    """Train the small CLIP, from its last checkpoint if there is one, and write its weights."""
    assert config.shapes is not None, "the quickstart has a world of its own"
    settings = config.shapes.pretraining
    seed = config.shapes.seed
    store = Store(weights.parent)
    checkpoint = weights.with_suffix(".checkpoint")

    torch.manual_seed(seed)
    clip = load(config.clip.model, None)
    size = towers(clip).vision.image_size[0]
    training = StillsTraining(
        clip,
        lambda rng, count: shapes.stills(rng, count, size),
        tokenizer(clip, config.clip.context),
        **settings.model_dump(),
        seed=seed,
    )
    if checkpoint.is_file():
        training.load(checkpoint)

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with Bar("train the small CLIP on stills", settings.steps, "steps") as bar:
            bar.show(training.steps_done)
            for loss in training:
                bar.show(training.steps_done, f"loss {loss:.3f}")
                if training.steps_done % CHECKPOINT_EVERY == 0:
                    with store.writing(checkpoint.name) as path:
                        training.save(path)
    finally:
        torch.set_num_threads(threads)

    with store.writing(weights.name) as path:
        save_file(clip.state_dict(), path)
    checkpoint.unlink(missing_ok=True)
