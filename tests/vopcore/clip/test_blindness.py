"""A CLIP that sees no difference between captions or pictures is refused before it is tuned."""

import json
from pathlib import Path

import pytest
import torch
from support import ROOT
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from vopcore.clip import check_not_blind, load, tokenizer

CAPTIONS = ["a dog runs on grass", "two people cook some rice", "A dog runs on grass", "one bird"]
TINY = ROOT / "conf/tiny_clip.json"


def with_tokenizer(folder: Path, words: list[str]) -> str:
    """The small CLIP with a tokenizer of Hugging Face that knows `words` and no other."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: number for number, word in enumerate(words, 2)}
    word_tokenizer = WordTokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    word_tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "tokenizer")

    config = json.loads(TINY.read_text())
    config["text_cfg"] |= {"hf_tokenizer_name": str(folder / "tokenizer"), "pool_type": "argmax"}
    path = folder / "model.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_a_tokenizer_that_knows_no_word_is_refused_by_name(tmp_path):
    torch.manual_seed(0)
    clip = load(with_tokenizer(tmp_path, ["una", "palabra"]))
    tokenize = tokenizer(clip, 16)
    assert torch.equal(*tokenize(CAPTIONS[:2])), "it is blind to words"
    assert not torch.equal(*tokenize([CAPTIONS[0], CAPTIONS[3]])), "not to how many there are"

    with pytest.raises(ValueError, match="different captions have the same vector") as caught:
        check_not_blind(clip, tokenize, tokenize.name, CAPTIONS)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("model.json", str(tmp_path / "tokenizer"), "same vector", "'a dog runs on grass'"):
        assert part in message


def test_a_tokenizer_that_knows_one_word_of_them_is_not_blind(tmp_path):
    torch.manual_seed(0)
    clip = load(with_tokenizer(tmp_path, ["dog"]))
    tokenize = tokenizer(clip, 16)
    check_not_blind(clip, tokenize, tokenize.name, CAPTIONS)


def test_clips_own_tokenizer_is_not_blind():
    torch.manual_seed(0)
    clip = load(str(TINY))
    tokenize = tokenizer(clip, 16)
    check_not_blind(clip, tokenize, tokenize.name, CAPTIONS)


def test_without_two_different_captions_only_pictures_are_compared(tmp_path):
    torch.manual_seed(0)
    clip = load(with_tokenizer(tmp_path, ["una"]))
    tokenize = tokenizer(clip, 16)
    check_not_blind(clip, tokenize, tokenize.name, [])
    check_not_blind(clip, tokenize, tokenize.name, ["a dog", "A  dog"])


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_weights_that_see_no_picture_are_refused(value):
    torch.manual_seed(0)
    clip = load(str(TINY))
    torch.nn.init.constant_(clip.visual.conv1.weight, value)
    tokenize = tokenizer(clip, 16)
    with pytest.raises(ValueError, match=r"tiny_clip.json \(tokenizer CLIP\): different pictures"):
        check_not_blind(clip, tokenize, tokenize.name, CAPTIONS)
