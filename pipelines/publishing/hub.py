"""The way to Hugging Face's hub, or to any server that speaks its protocol (HF_ENDPOINT)."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from pipelines.publishing.folder import PublishError


def upload(folder: Path, name: str) -> str:
    """Make the repository ORG/NAME where there is none and put the folder there; returns its address.

    Raises PublishError, one line, where the hub is away or refuses; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Publish a tuned run",
        )
    except HFValidationError as error:
        # A name that no hub takes: trying again does not help.
        raise PublishError(f"hub:{name}: {_first_line(error)}") from None
    except Exception as error:
        # Its own errors, and those of the HTTP library that it happens to use.
        again = f"all of it is kept in {folder}; the same command tries again"
        raise PublishError(f"hub:{name}: {_first_line(error)}; {again}") from None
    return str(address)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
