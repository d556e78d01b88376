"""Which code a run came from."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent


def code_version(root: Path = ROOT) -> str:
    """The commit, `-changed` after it where files differ from it; without git, the package's version."""
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=-changed",
    ]
    try:
        if (root / ".git").exists():  # a copy inside another repository is not that repository's commit
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here, or a checkout that it refuses to read
    try:
        return f"vopcore {version('vopcore')}"
    except PackageNotFoundError:
        return "unknown"
