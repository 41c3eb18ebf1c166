"""What help and the documents tell a user to type is what the commands take."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from curation.configs import default_config
from curation.pipelines import load_pipeline
from curation.subsets.recipes import load_recipe
from training.config import load_config
from training.superresolution.config import load_config as load_sr_config

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS: dict[str, str] = PYPROJECT["project"]["scripts"]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Keys that stand for a user's own file, which the document shows above the line.
OWN = ("scorers.redness", "rules.redness")


def app_of(name: str) -> Any:
    return importlib.import_module(SCRIPTS[name].partition(":")[0]).app


def options_of(name: str) -> set[str]:
    params = typer.main.get_command(app_of(name)).params
    return {"--help", *(opt for param in params for opt in [*param.opts, *param.secondary_opts])}


def written(text: str) -> list[list[str]]:
    """The commands of ours in a text of shell lines, as words."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|", line.split(" #")[0]):
            words = shlex.split(part.replace("python curation/run.py", "vf-curate"))
            if words and words[0] in SCRIPTS:
                found.append([word for word in words if word not in ("...", "[...]")])
    return found


def check(words: list[str]) -> None:
    """Fail unless a command has these options, names and keys."""
    name, *given = words
    flags = {word.partition("=")[0] for word in given if word.startswith("--") and word != "--"}
    assert flags <= options_of(name), words
    pairs = list(pairwise(given))
    values = {flag: value for flag, value in pairs if flag.startswith("--")}
    sets = [value for flag, value in pairs if flag == "--set" and not value.startswith(OWN)]
    if name == "vf-curate" and "--config" not in values:
        load_pipeline(default_config(), values.get("--pipeline", "demo"), sets)
    if name == "vf-clean" and "--config" not in values:
        load_recipe(default_config(), values.get("--recipe", "hd-vg-clean"), sets)
    if name in ("vf-train", "vf-precompute") and values.get("--preset", "PRESET").islower():
        load = load_sr_config if values.get("--stage") == "sr" else load_config
        load(values["--preset"], sets)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_help_ends_with_examples_that_hold(name: str) -> None:
    done = CliRunner().invoke(app_of(name), ["--help"], terminal_width=80)
    assert done.exit_code == 0
    usage, _, examples = done.output.partition("Examples:\n")
    assert "<" not in usage and "{" not in usage  # <list[str]>, {dataset}
    assert "--install-completion" in usage
    told = written(examples)
    assert len(told) >= 3 and told[0][0] == name
    for words in told:
        check(words)
    assert all(len(line) <= 80 for line in usage.splitlines())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_a_document_hold(path: Path) -> None:
    for block in BLOCK.findall(path.read_text()):
        for words in written(block):
            check(words)


def test_a_command_that_does_not_hold_is_found() -> None:
    for line in (
        "vf-why a b --nothing",
        "vf-curate x --set scenes.min=3",
        "vf-curate --pipeline w",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check(written(line)[0])
    assert written("cd x && vf-why a b # vf-why c") == [["vf-why", "a", "b"]]
