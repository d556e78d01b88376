"""Which code a run came from."""

import ast
import hashlib
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
        # a copy inside another repository is not that repository's commit
        if (root / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here, or a checkout that it refuses to read
    try:
        return f"vopcore {version('vopcore')}"
    except PackageNotFoundError:
        return "unknown"


LIBRARIES = ("torch", "open_clip_torch", "av")  # their new versions may move numbers
ASIDE = (  # what only chooses runs or shows numbers
    "pipelines/benchmark.py",
    "pipelines/matrix",
    "pipelines/report.py",
    "pipelines/reports",
    "pipelines/gallery.py",
    "pipelines/track",
    "pipelines/deliver.py",
    "pipelines/check_data.py",
    "pipelines/methods.py",
    "pipelines/experiment/data_check.py",
    "pipelines/experiment/data_report.py",
    "pipelines/experiment/method_costs.py",
    "vopcore/config/matrix.py",
    "vopcore/metrics/verdict.py",
)


def code_hash(root: Path = ROOT) -> str:
    """Eight characters that change with any code that numbers come from, and the libraries' versions.

    Comments and layout do not count, nor what only shows numbers: a new line in a README is no reason to
    tune everything anew.
    """
    files = sorted((root / "vopcore").rglob("*.py")) + sorted((root / "pipelines").rglob("*.py"))
    found = hashlib.sha256()
    for file in files:
        place = file.relative_to(root)
        if any(place.is_relative_to(aside) for aside in ASIDE):
            continue
        found.update(f"{place}\n{ast.dump(ast.parse(file.read_bytes()))}\n".encode())
    found.update(" ".join(f"{name} {version(name)}" for name in LIBRARIES).encode())
    return found.hexdigest()[:8]
