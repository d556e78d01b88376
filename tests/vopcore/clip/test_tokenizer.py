"""The tokenizer that belongs to a model."""

import json
import sys
import tomllib

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from packaging.requirements import Requirement
from support import ROOT
from support.clip_families import write_config
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast

from vopcore.clip import blank, tokenizer
from vopcore.clip.tokenizer import Tokenizer
from vopcore.retriever import Retriever


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


LANGUAGES = {
    "English": "a dog runs into the sea",
    "German": "ein Hund läuft ins Meer",
    "Spanish": "un perro corre hacia el mar",
    "Russian": "собака бежит в море",
    "Chinese": "一只狗跑进海里",
    "Korean": "개가 바다로 달려간다",
    "Arabic": "كلب يركض إلى البحر",
}


@pytest.mark.parametrize("family", ["xlm_roberta", "nllb", "metaclip2"])
def test_a_text_in_another_language_has_another_vector(tmp_path, family):
    """The tokenizer is of the kind that XLM-R's and NLLB's are: pieces learned from the languages' texts."""
    pieces = WordTokenizer(Unigram())
    pieces.pre_tokenizer = Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(vocab_size=98, special_tokens=special, unk_token="<unk>", show_progress=False)
    pieces.train_from_iterator(list(LANGUAGES.values()) * 20, trainer)
    start, end = pieces.token_to_id("<s>"), pieces.token_to_id("</s>")
    pieces.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")

    config = write_config(tmp_path, family)
    settings = json.loads(config.read_text())
    settings["text_cfg"] |= {"hf_tokenizer_name": str(tmp_path / "tokenizer"), "context_length": 40}
    if family == "metaclip2":
        settings["text_cfg"]["eos_id"] = end
    config.write_text(json.dumps(settings))

    torch.manual_seed(0)
    clip = blank(str(config))
    tokenize = tokenizer(clip, 40)
    tokens = tokenize(list(LANGUAGES.values()))
    unknown = tokens == fast.unk_token_id
    assert unknown.float().mean() < 0.1, "the languages' letters are known"

    retriever = Retriever(clip).eval()
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(retriever.text(tokens), dim=-1)
        again = torch.nn.functional.normalize(retriever.text(tokenize(["собака бежит в море"])), dim=-1)
    distances = torch.cdist(vectors, vectors) + torch.eye(len(vectors))
    assert distances.min() > 1e-3
    torch.testing.assert_close(again[0], vectors[list(LANGUAGES).index("Russian")], rtol=0, atol=1e-5)
