"""The direction of imports and the names of modules, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    p for name in ("curation", "model", "training") for p in sorted((ROOT / name).rglob("*.py"))
]
ALLOWED = {"curation": {"curation"}, "model": {"model"}, "training": {"training", "model"}}
# What training uses of curation. None of it loads Ray or a library that opens videos.
SHARED = ("curation.shards", "curation.settings", "curation.commands", "curation.places")
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
    doors = SHARED if package == "training" else ()
    return [
        name
        for name in ours
        if name.split(".")[0] not in ALLOWED[package]
        and not any(name == door or name.startswith(f"{door}.") for door in doors)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    assert breaches(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_hides_another(path: Path) -> None:
    """`python curation/run.py` puts curation/ first on sys.path, so a name there shadows all."""
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in OUTSIDERS
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def test_what_training_uses_of_curation_is_light() -> None:
    code = f"import sys, {', '.join(SHARED)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert set(SHARED) <= loaded
    assert not loaded & {"ray", "av", "cv2", "torch"}


def test_a_planted_breach_is_seen() -> None:
    assert breaches("curation", "from model import SpaceTimeUNet") == ["model.SpaceTimeUNet"]
    assert breaches("model", "import ray\nimport training.data") == ["training.data"]
    assert breaches("training", "from curation.shards import read") == []
    assert breaches("training", "from curation import pipelines") == ["curation.pipelines"]
