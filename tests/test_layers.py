"""The layers of the house, read from the imports: pipelines -> vopcore, and who may know which library."""

import ast
from pathlib import Path

import pytest
from support import ROOT

MODULES = [path for room in ("pipelines", "vopcore") for path in sorted((ROOT / room).rglob("*.py"))]
ONLY_IN = {  # library: the only places that import it
    "ray": ["pipelines"],
    "mlflow": ["pipelines/track"],
    "open_clip": ["vopcore/clip"],
    "av": ["vopcore/video", "vopcore/datasets/shapes.py"],
    "simplejpeg": ["vopcore/shards", "vopcore/video/thumbnail.py"],
    "lancedb": ["vopcore/index/lance.py"],
    "mteb": ["vopcore/mteb_encoder.py"],
    "datasets": ["vopcore/mteb_encoder.py"],
    "omegaconf": ["vopcore/config"],
    "pydantic": ["vopcore/config", "pipelines/serving", "pipelines/reproduction/card.py"],
    "fastapi": ["pipelines/serving"],
}
NOT_KNOWN = {  # room of vopcore: what it must not import
    "vopcore/methods": ["vopcore.retriever", "vopcore.shards", "vopcore.video", "vopcore.datasets"],
    "vopcore/clip": ["vopcore.methods", "vopcore.shards", "vopcore.video", "vopcore.datasets"],
    "vopcore/metrics": [
        "vopcore.clip",
        "vopcore.methods",
        "vopcore.shards",
        "vopcore.video",
        "vopcore.datasets",
    ],
    "vopcore/video": [
        "vopcore.clip",
        "vopcore.methods",
        "vopcore.shards",
        "vopcore.datasets",
        "torch.nn.Module",
    ],
    "vopcore/shards": ["vopcore.clip", "vopcore.methods", "vopcore.datasets"],
    "vopcore/datasets": ["vopcore.methods", "vopcore.shards", "vopcore.metrics"],
    "vopcore/": ["pipelines", "vopcore.tests"],
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_knows(path):
    place, names = str(path.relative_to(ROOT)), imports(path)
    for library, homes in ONLY_IN.items():
        if not any(place.startswith(home) for home in homes):
            assert not [name for name in names if within(name, library)], f"{place} imports {library}"
    for room, unknown in NOT_KNOWN.items():
        if place.startswith(room):
            for package in unknown:
                assert not [name for name in names if within(name, package)], f"{place} imports {package}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path}: no docstring"
