"""recipes of pipelines.yaml: what loads, what is refused and how, what a score depends on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from curation.settings import ConfigError
from curation.subsets.recipes import Recipe, load_recipe, score_folder

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"


def load(*overrides: str, config: Path = CONFIG, name: str = "hd-vg-clean") -> Recipe:
    return load_recipe(config, name, list(overrides))


def test_the_papers_recipe_judges_text_motion_and_aesthetics() -> None:
    recipe = load()
    assert recipe.keys == ["text", "motion", "aesthetic"]
    assert recipe.keep == 0.31  # 40M of 130M
    assert recipe.ranked == {"text": False, "motion": True, "aesthetic": True}


def test_every_number_of_the_recipes_has_a_comment() -> None:
    text = CONFIG.read_text().split("\nrecipes:")[1]
    numbers = [line for line in text.splitlines() if re.search(r"(min|max|keep): ", line)]
    assert len(numbers) >= 4
    assert [line for line in numbers if "#" not in line] == []


def test_bounds_are_numbers_or_quantiles() -> None:
    recipe = load("rules.motion.min=p20", "rules.motion.max=3", "rules.text.max=p97.5")
    assert (recipe.rules["motion"].min, recipe.rules["motion"].max) == ("p20", 3.0)
    assert recipe.rules["text"].max == "p97.5"
    assert list(recipe.ranked) == ["text", "aesthetic"]  # two bounds: neither side is better


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rules.motion.mn=1", "unknown key 'rules.motion.mn'; did you mean 'min'"),
        ("rules.moton.min=1", "unknown rule 'moton'; did you mean 'motion'"),
        ("scorers.motin=flow", "unknown key 'scorers.motin'; did you mean 'motion'"),
        ("kep=0.3", "unknown key 'kep'; did you mean 'keep'"),
        ("rules.motion.min=p101", "rules.motion.min is 'p101': give a number, or a quantile"),
        ("rules.motion.min=twenty", "rules.motion.min is 'twenty': give a number, or a quantile"),
        ("rules.motion.min=.nan", "rules.motion.min is nan: give a number"),
        ("rules.motion.min=true", "rules.motion.min is True: give a number"),
        ("keep=0", "keep is 0: .*greater than 0"),
        ("keep=2.5", "keep is 2.5: give a share up to 1 or a whole number"),
        (
            "rules.sharpness.min=1",
            "rules.sharpness needs scorers.look, which is not set; add --set scorers.look=pixels",
        ),
        ("scorers.aesthetic=null", "add --set scorers.aesthetic=laion or technical_quality"),
        ("scorers.text=ocr", "scorers.text is 'ocr'; allowed: rapidocr"),
    ],
)
def test_a_wrong_override_is_told_in_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(override)


def test_keep_needs_something_to_rank_by(tmp_path: Path) -> None:
    config = tmp_path / "pipelines.yaml"
    config.write_text("recipes: {a: {keep: 0.5}, b: {extends: a, rules: {aspect: {min: 1}}}}")
    with pytest.raises(ConfigError, match="keep ranks clips by the rules"):
        load(config=config, name="a")
    assert load(config=config, name="b").keep == 0.5


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'hd-vg'; did you mean 'hd-vg-clean'"):
        load(name="hd-vg")
    (tmp_path / "p.yaml").write_text("pipelines: {web: {}}")
    with pytest.raises(ConfigError, match="holds no map of recipes"):
        load(config=tmp_path / "p.yaml")


def test_scores_are_kept_apart_by_what_they_depend_on() -> None:
    folders = {
        key: {score_folder(load(*o).scorers, key) for o in ([], ["scorers.aesthetic_checkpoint=x"])}
        for key in ("text", "aesthetic")
    }
    assert len(folders["text"]) == 1 and len(folders["aesthetic"]) == 2
    other = load("scorers.aesthetic=technical_quality").scorers
    assert score_folder(other, "aesthetic") not in folders["aesthetic"]
    assert all(f.startswith("aesthetic-") for f in folders["aesthetic"])
