"""The commands from any folder: the config and samples that come with us, what they offer."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from curation import run
from curation.configs import default_config, load_named
from curation.offered import keys_of
from curation.pipelines import Pipeline
from curation.subsets.recipes import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vf_curate(*given: str) -> Result:
    return CliRunner().invoke(run.app, given)


def test_the_samples_are_curated_from_any_folder(elsewhere: Path) -> None:
    done = vf_curate("--dry-run")
    assert done.exit_code == 0
    assert "4 sources -> runs/demo" in done.output
    assert "\n  examples/media/meadow.mp4\n" in done.output


def test_what_the_package_carries_is_what_the_repository_has(elsewhere: Path) -> None:
    assert default_config() == ROOT / "pipelines.yaml"
    folder = ROOT / "curation" / "examples" / "media"
    assert folder.resolve() == ROOT / "examples" / "media"


def test_a_config_where_the_user_stands_comes_first(elsewhere: Path) -> None:
    mine = {"web": {"description": "Mine.", "rules": {"duration": {"min": 3}}}}
    recipes = {"few": {"keep": 0.5, "rules": {"duration": {"min": "p20", "max": 9}, "aspect": {}}}}
    text = yaml.safe_dump({"pipelines": mine, "recipes": recipes}, sort_keys=False)
    Path("pipelines.yaml").write_text(text)
    told = vf_curate("--list").output
    assert told.startswith("pipelines of pipelines.yaml")
    for line in ("  web: Mine.", "    duration at least 3", "    duration p20 to 9",
                 "    aspect measured, not judged", "    keep 0.5"):  # fmt: skip
        assert f"{line}\n" in told
    assert "hd-vg" not in told
    theirs = vf_curate("--list", "--config", str(ROOT / "pipelines.yaml")).output
    assert "  hd-vg: " in theirs and "    motion at least p20\n" in theirs


def test_a_config_that_is_not_there_is_told(elsewhere: Path) -> None:
    done = vf_curate("--list", "--config", "no.yaml")
    assert done.exit_code == 2
    assert "no config file no.yaml; without --config there is one of ours" in done.output


@pytest.mark.parametrize(("kind", "section"), [("pipelines", Pipeline), ("recipes", Recipe)])
def test_every_key_that_is_told_can_be_set(kind: str, section: type[Pipeline | Recipe]) -> None:
    """A value that is wrong for it is refused for that, and no key is unknown."""
    keys = [line.partition(" ")[0] for line in keys_of(section)]
    assert "media.timeout_s" in keys and len(keys) == len(set(keys)) > 15
    config = ROOT / "pipelines.yaml"
    for key in keys:
        name = {"pipelines": "web", "recipes": "near-copies"}[kind]
        try:
            load_named(config, kind, name, [f"{key}=null"], section)
        except ValueError as error:
            assert "unknown" not in str(error)
