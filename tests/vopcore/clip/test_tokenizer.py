"""The tokenizer that belongs to a model."""

import sys
import tomllib

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from packaging.requirements import Requirement
from support import ROOT
from support.clip_families import write_config

from vopcore.clip import blank, tokenizer
from vopcore.clip.tokenizer import Tokenizer


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    config = write_config(tmp_path, "xlm_roberta")
    monkeypatch.setitem(sys.modules, "transformers", None)
    extra = r"transformers is not installed: pip install -e '\.\[multilingual\]'"
    with pytest.raises(ValueError, match=f"^xlm-roberta-base-ViT-B-32: .*{extra}$"):
        tokenizer("xlm-roberta-base-ViT-B-32", 77)
    with pytest.raises(ValueError, match=f"^{config}: .*{extra}$"):
        blank(str(config))

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["multilingual"]
    assert [Requirement(text).name for text in extras] == ["transformers"]


ENDLESS = [
    "a" * 32_000,
    "ab" * 16_000 + " and a dog",
    "a dog " * 20_000,
    "\n" * 50_000 + "a dog  runs",
    "\U0001f602" * 5_000,
    "a dog " + "\u00e9" * 32_000,
    "! " * 30_000,
    "a dog\twith " + "word " * 400 + "end",
]


@pytest.mark.parametrize("words", [8, 77])
@pytest.mark.parametrize("caption", ENDLESS, ids=range(len(ENDLESS)))
def test_an_endless_caption_has_the_tokens_that_open_clip_gives_it(caption, words):
    theirs = open_clip.get_tokenizer("ViT-B-32-quickgelu", context_length=words)
    assert torch.equal(tokenizer("ViT-B-32-quickgelu", words)([caption]), theirs([caption]))


@pytest.mark.parametrize("caption", [*ENDLESS, "x" * 10**6, "y" * 8_000])
def test_no_endless_word_reaches_what_merges_its_letters(caption):
    """A word of 32,000 letters took 40 s there: the time grows with the square of its length."""
    longest = []

    class Recording(SimpleTokenizer):
        def bpe(self, token):
            longest.append(len(token))
            return super().bpe(token)

    own = Tokenizer(Recording(context_length=77), "CLIP", 77)
    own([caption])
    assert own.count(caption) > 2
    assert max(longest) <= 4 * 2_541  # bytes of so many letters


def test_the_longest_token_is_what_the_bound_counts_with():
    vocabulary = SimpleTokenizer().encoder
    assert max(len(token.removesuffix("</w>")) for token in vocabulary) == 32


def test_an_endless_word_is_counted_in_pieces():
    count = tokenizer("ViT-B-32-quickgelu", 77).count
    assert count("a dog runs") == 5
    assert count("a dog " * 3_000) == 6_002
    exact = len(SimpleTokenizer().encode("ab" * 4_000)) + 2
    assert exact <= count("ab" * 4_000) <= exact + 8
