"""Python in README and docs runs as it is written; with weights it is held to their loaders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model import SpaceTimeUNet, VideoFactoryPipeline

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a block asks of folders that a user has; docs/python.md has a test of its own.
NEEDS = re.compile(r"(SpaceTimeUNet|VideoFactoryPipeline)\.(from_\w+)\(\"(?:/models/|exported)")
CLASSES = {"SpaceTimeUNet": SpaceTimeUNet, "VideoFactoryPipeline": VideoFactoryPipeline}


@pytest.mark.parametrize("name", ["README.md", "docs/model.md", "docs/training.md"])
def test_the_blocks_of_a_document_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCK.findall((ROOT / name).read_text())
    assert blocks
    for block in blocks:
        compile(block, name, "exec")
        loaders = NEEDS.findall(block)
        for owner, loader in loaders:
            assert callable(getattr(CLASSES[owner], loader))
        if not loaders:
            exec(block, names)  # our own text
