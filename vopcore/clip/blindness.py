"""A CLIP that sees no difference: found before it is tuned for hours.

A tokenizer that is not the model's gives every caption the same tokens, and weights that do not fit give
every picture the same vector. Nothing of it fails: recall is that of guessing.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vopcore.clip.encode import encode_text, encode_video
from vopcore.clip.interface import CLIP
from vopcore.clip.load import preprocessing
from vopcore.clip.towers import model_name

CAPTIONS = 8  # that are compared
CAPTIONS_READ = 1000  # among which these are chosen
SHOWN = 60  # letters of a caption in a message
SAME = 1e-5  # of a vector's length: rounding stays below


def check_not_blind(
    clip: CLIP,
    tokenize: Callable[[list[str]], Tensor],
    tokenizer: str,
    captions: Iterable[str],
) -> None:
    """Refuse a CLIP to which different captions or different pictures are one.

    clip: frozen, fp32, on the CPU. tokenizer: its name. captions: those of the data; without two different
    ones only pictures are compared. Costs two pictures and up to eight captions.
    Raises ValueError, one line.
    """
    examples = _similar_captions(captions)
    with torch.inference_mode():
        text = encode_text(clip, tokenize(examples)) if len(examples) > 1 else None
        pictures = encode_video(clip, _pictures(*preprocessing(clip).size), None)[:, 0]

    name = f"{model_name(clip)} (tokenizer {tokenizer})"
    if text is not None and _are_one(text):
        pair = f"{examples[0][:SHOWN]!r}, {examples[1][:SHOWN]!r}"
        raise ValueError(
            f"{name}: different captions have the same vector ({pair}): the tokenizer or the weights are"
            " another model's"
        )
    if _are_one(pictures):
        raise ValueError(
            f"{name}: different pictures have the same vector: the weights are another model's, or damaged"
        )


def _similar_captions(captions: Iterable[str]) -> list[str]:
    """Different captions with the same number of words, as far as there are any: a tokenizer that knows no
    word still counts them.
    """
    distinct: dict[str, str] = {}
    for number, caption in enumerate(captions):
        if number == CAPTIONS_READ:
            break
        words = " ".join(caption.casefold().split())
        distinct.setdefault(words, caption)

    lengths = Counter(len(words.split()) for words in distinct)
    if not lengths:
        return []
    length, count = lengths.most_common(1)[0]
    if count == 1:
        return list(distinct.values())[:CAPTIONS]
    return [caption for words, caption in distinct.items() if len(words.split()) == length][:CAPTIONS]


def _pictures(height: int, width: int) -> Tensor:
    """Two normalised pictures, float32 [2, 1, 3, H, W]: brighter to the right, and brighter to the bottom."""
    to_the_right = torch.linspace(-1.5, 1.5, width).expand(height, width)
    to_the_bottom = torch.linspace(-1.5, 1.5, height)[:, None].expand(height, width)
    grey = torch.stack([to_the_right, to_the_bottom])
    frames = grey[:, None, None]
    colours = frames.expand(-1, 1, 3, -1, -1)
    return colours.contiguous()


def _are_one(vectors: Tensor) -> bool:
    """Whether all rows [N, D] are the same up to rounding; vectors that are no numbers are, too."""
    differences = (vectors - vectors[0]).norm(dim=-1)
    largest = differences.max()
    return not bool(largest > SAME * vectors[0].norm())
