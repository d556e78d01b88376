"""The tokenizer that belongs to a model: CLIP's own byte pairs, or one of Hugging Face."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from vopcore.clip.interface import CLIP
from vopcore.clip.load import model_config
from vopcore.clip.towers import model_name

CLIP_VOCABULARY = 49408  # tokens of CLIP's own byte pairs
DEFAULT_CONTEXT = 77  # of a model whose config says nothing, as in open_clip
INSTALL = "pip install -e '.[multilingual]'"
LONGEST_TOKEN = 32  # letters of the longest token in CLIP's vocabulary
LONG_WORD = 1024  # letters: merging byte pairs takes time that grows with their square


class Tokenizer:
    """captions -> Int64 [N, words]: start, words, end, padding. A long caption loses words, never its end."""

    def __init__(
        self,
        tokenize: SimpleTokenizer | HFTokenizer,
        name: str,
        words: int,
    ) -> None:
        self.name = name
        self.words = words
        self._tokenize = tokenize

    def __call__(self, captions: list[str]) -> Tensor:
        """Raises nothing: any text has tokens."""
        return self._tokenize([self._shortened(caption) for caption in captions])

    def count(self, caption: str) -> int:
        """Tokens of a caption, start and end included, before anything is cut off.

        An endless word is counted in pieces, each of which may have a token more.
        """
        if isinstance(self._tokenize, SimpleTokenizer):
            return len(self._tokenize.encode(_in_words(caption))) + 2
        return len(self._tokenize.tokenizer(self._tokenize.clean_fn(caption)).input_ids)

    def _shortened(self, caption: str) -> str:
        """A caption of endless length, or with an endless word, would take minutes.

        What is left of it has at least as many tokens as are read: one in so many letters, and one a word.
        """
        enough = (LONGEST_TOKEN + 1) * self.words
        if len(caption) <= enough:
            return caption
        return " ".join(caption.split())[:enough]


def _in_words(caption: str) -> str:
    """The caption with its endless words in pieces."""
    if len(caption) <= LONG_WORD:
        return caption

    pieces = []
    for word in caption.split():
        starts = range(0, len(word), LONG_WORD)
        pieces += [word[start : start + LONG_WORD] for start in starts]
    return " ".join(pieces)


def tokenizer(model: str | CLIP, words: int) -> Tokenizer:
    """The tokenizer of a model: a name of open_clip, the path of a config, or a CLIP that `load` has built.

    Raises ValueError, one line, if the model reads fewer words, or if files of its tokenizer are neither
    here nor can be fetched.
    """
    name = model if isinstance(model, str) else model_name(model)
    text = text_settings(model)
    context = text["context_length"]
    if not 2 < words <= context:
        raise ValueError(f"words: {words} is not between 3 and the {context} tokens that {name} reads")
    if text.get("pool_type") == "last" and words != context:
        raise ValueError(f"words: {words}, but {name} reads its last position: it must be {context}")

    source = text.get("hf_tokenizer_name")
    if source:
        return Tokenizer(_hugging_face(name, source, text, words), source, words)
    if text["vocab_size"] < CLIP_VOCABULARY:
        raise ValueError(
            f"{name}: vocab_size is {text['vocab_size']}, CLIP's tokenizer has {CLIP_VOCABULARY} tokens"
        )
    return Tokenizer(SimpleTokenizer(context_length=words), "CLIP", words)


def tokenizer_name(model: str | CLIP) -> str:
    """`CLIP` for its own byte pairs, else the repository or the folder of Hugging Face's files."""
    return text_settings(model).get("hf_tokenizer_name") or "CLIP"


def text_settings(model: str | CLIP) -> dict[str, Any]:
    """`text_cfg` of a model's config, `context_length` and `vocab_size` filled in."""
    if isinstance(model, str):
        settings = model_config(model)["text_cfg"]
    elif getattr(model, "text_settings", None) is not None:
        settings = model.text_settings
    else:  # built by open_clip's own functions: its classes keep two of them
        settings = {"context_length": model.context_length, "vocab_size": model.vocab_size}
    return {"context_length": DEFAULT_CONTEXT, "vocab_size": CLIP_VOCABULARY} | settings


def _hugging_face(
    name: str,
    source: str,
    text: dict[str, Any],
    words: int,
) -> HFTokenizer:
    """As `open_clip.get_tokenizer` makes it, for configs of one's own too."""
    check_transformers(name)
    options = dict(text.get("tokenizer_kwargs") or {})
    try:
        return HFTokenizer(
            source,
            context_length=words,
            tokenizer_mode=text.get("tokenizer_mode"),
            **options,
        )
    except ImportError as error:
        raise ValueError(
            f"{name}: its tokenizer {source} needs a package that is not installed ({error.name or error}): "
            f"{INSTALL}"
        ) from None
    except Exception as error:
        # transformers and huggingface_hub raise many kinds; each means no files
        raise ValueError(missing_files(name, "tokenizer", source, error)) from None


def check_transformers(model: str) -> None:
    """ValueError, one line, where the package is not installed that Hugging Face's text towers and tokenizers
    need."""
    if find_spec("transformers") is None:
        raise ValueError(
            f"{model}: its text tower or its tokenizer is one of Hugging Face, and transformers is not"
            f" installed: {INSTALL}"
        )


def missing_files(
    name: str,
    what: str,
    source: str,
    error: Exception,
) -> str:
    """One line: which files of Hugging Face are not there, and where they were looked for."""
    reason = " ".join(str(error).split())[:200]
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"{name}: the {what} files of {source} are neither in the cache {cache_folder()} "
        f"nor can they be fetched{offline}: {reason}"
    )


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
