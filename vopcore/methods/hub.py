"""Tuned weights on Hugging Face's hub: `hub:ORG/NAME` as a local file, fetched once and kept in its cache."""

import os

HUB = "hub:"
FILE = "tuned.safetensors"


def weights_file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """`path` itself, or the local copy of what `hub:ORG/NAME` or `hub:ORG/NAME@REVISION` names.

    Without a network the copy in the cache is used. Raises ValueError, one line, where there is none.
    """
    if not isinstance(path, str) or not path.startswith(HUB):
        return path
    # only where it is needed: it takes a second to import
    from huggingface_hub import hf_hub_download

    name, _, revision = path.removeprefix(HUB).partition("@")
    try:
        return hf_hub_download(name, FILE, revision=revision or None)
    except Exception as error:
        # its own errors and those of the HTTP library it happens to use
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: {lines[0]}") from None
