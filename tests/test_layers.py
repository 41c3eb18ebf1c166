"""The direction of imports and the names of modules, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    p for name in ("curation", "model", "training") for p in sorted((ROOT / name).glob("*.py"))
]
ALLOWED = {"curation": {"curation"}, "model": {"model"}, "training": {"training", "model"}}
OUTSIDERS = {
    "av",
    "cv2",
    "datasets",
    "diffusers",
    "ray",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
}


def imported_modules(source: str) -> list[str]:
    """Full dotted names of everything a source text imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def breaches(package: str, source: str) -> list[str]:
    """Imports of our own code that the layers do not allow."""
    ours = [n for n in imported_modules(source) if n.split(".")[0] in ALLOWED]
    shards = "curation.shards"
    return [
        n
        for n in ours
        if n.split(".")[0] not in ALLOWED[package]
        and not (package == "training" and (n == shards or n.startswith(shards + ".")))
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_follow_the_layers(path: Path) -> None:
    assert breaches(path.parent.name, path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_module_hides_another(path: Path) -> None:
    """`python curation/run.py` puts curation/ first on sys.path, so a name there shadows all."""
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in OUTSIDERS
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def test_a_planted_breach_is_seen() -> None:
    assert breaches("curation", "from model import SpaceTimeUNet") == ["model.SpaceTimeUNet"]
    assert breaches("model", "import ray\nimport training.data") == ["training.data"]
    assert breaches("training", "from curation.shards import read") == []
    assert breaches("training", "from curation import pipelines") == ["curation.pipelines"]
