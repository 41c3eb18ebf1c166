"""pipelines.yaml and --set: what loads, what is refused and how, what a change changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from curation.pipelines import Pipeline, Scorers, load_pipeline
from curation.scores import table
from curation.scores.table import SCORES, TABLE
from curation.settings import ConfigError

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
NAMES = ["web", "demo", "hd-vg", "webvid"]


def load(name: str = "web", *overrides: str, config: Path = CONFIG) -> Pipeline:
    return load_pipeline(config, name, list(overrides))


def changed_stages(*overrides: str) -> set[str]:
    before, after = load().fingerprints(), load("web", *overrides).fingerprints()
    return {stage for stage in before if before[stage] != after[stage]}


def write(folder: Path, text: str) -> Path:
    path = folder / "pipelines.yaml"
    path.write_text(text)
    return path


# -- the repository's own


@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_of_the_repository_loads(name: str) -> None:
    pipeline = load(name)
    assert pipeline.name == name and pipeline.description
    assert {"resolution", "aspect", "duration", "watermark"} <= set(pipeline.rules)


def test_the_file_holds_these_pipelines_and_no_other() -> None:
    assert sorted(yaml.safe_load(CONFIG.read_text())["pipelines"]) == sorted(NAMES)


def test_pipelines_differ_where_their_names_say() -> None:
    assert load("demo").sources == ["examples/media"] and load("web").sources == []
    assert load("demo").rules == load("web").rules
    hd_vg, webvid = load("hd-vg"), load("webvid")
    assert [load(name).scenes.detector for name in NAMES] == ["shots", "shots", "shots", "content"]
    assert (hd_vg.captions.model, hd_vg.captions.num_frames) == ("blip2", 1)
    assert webvid.rules["watermark"].max == 1  # scored, never a reason to drop
    assert load("web").rules["resolution"].min == 720 and load("web").rules["duration"].min == 2


def test_every_threshold_has_a_comment() -> None:
    lines = CONFIG.read_text().splitlines()
    thresholds = [line for line in lines if re.match(r"\s+\w+: \{(min|max)", line)]
    assert len(thresholds) >= 10
    assert [line for line in thresholds if "#" not in line] == []


# -- mistakes


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rules.watermark.maxx=1", "unknown key 'rules.watermark.maxx'; did you mean 'max'"),
        ("rules.watermrk.max=1", "unknown rule 'watermrk'; did you mean 'watermark'"),
        ("scens.detector=content", "unknown key 'scens'; did you mean 'scenes'"),
        ("scenes.detectr=content", "unknown key 'scenes.detectr'; did you mean 'detector'"),
        ("download.allow_privat=true", "did you mean 'allow_private'"),
        ("scenes.detector=sharp", "scenes.detector is 'sharp': .*'adaptive', 'content'"),
        ("scenes.min_scene_s=-1", "scenes.min_scene_s is -1: .*greater than or equal to 0"),
        ("scenes.trimm=false", "unknown key 'scenes.trimm'; did you mean 'trim'"),
        ("scenes.max_s=0", "scenes.max_s is 0: .*greater than 0"),
        (
            "scenes.threshold=3",
            "scenes.threshold is 3.0, but .* shots has none; .*detector=adaptive",
        ),
        ("scorers.hidden_cut=null", "rules.hidden_cut needs scorers.hidden_cut.*=network$"),
        ("rules.duration.min=long", "rules.duration.min is 'long': .*valid number"),
        ("scenes=3", "scenes is 3: "),
        ("cut.crf.deep=3", "'crf' holds a value, not keys"),
        ("extends=demo", "unknown key 'extends'"),
        ("rules.watermark.max=.nan", "rules.watermark.max is nan: "),
        ("rules.motion.min=0.1", "rules.motion needs scorers.motion.*--set scorers.motion=flow$"),
        ("rules.zoom.max=0.5", "rules.zoom needs scorers.motion"),
        ("rules.sharpness.min=0.1", "needs scorers.look.*--set scorers.look=pixels$"),
        ("rules.aesthetic.min=5", "scorers.aesthetic=laion or technical_quality$"),
        ("scorers.motion=slow", "scorers.motion is 'slow'; allowed: flow"),
        ("rules.duration.min", "not path=value, such as rules.watermark.max=0.5"),
        ("=3", "not path=value"),
        ("rules..max=3", "not path=value"),
        ("captions.prompt=[a", "not a YAML value"),
        ("name=other", "unknown key 'name'"),
    ],
)
def test_a_wrong_override_is_told_in_one_sentence(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("web", override)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pipelines: {a: {rules: {duration: {mn: 2}}}}", "did you mean 'min'"),
        ("pipelines: {a: {extends: b}}", "unknown pipeline 'b'"),
        ("pipelines: {a: {extends: a}}", "'a' extends itself"),
        ("pipelines: {a: {extends: b}, b: {extends: a}}", "extends itself"),
        ("pipelines: {a: [1]}", "pipelines.a is not a map"),
        ("pipelines: [a]", "no map of pipelines"),
        ("- a", "holds no map of pipelines"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("a", config=write(tmp_path, text))


def test_an_unknown_pipeline_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown pipeline 'hdvg'; did you mean 'hd-vg'"):
        load("hdvg")
    with pytest.raises(ConfigError, match="no config file"):
        load("web", config=tmp_path / "none.yaml")


# -- what is said is what is meant


def test_overrides_are_read_as_yaml() -> None:
    pipeline = load(
        "web",
        *("rules.watermark.max=0.7", "download.allow_private=true", "captions.checkpoint=null"),
        *("sources=[a, b]", "rules.static.min=0.1", "cut.crf=12", "captions.prompt=a=b"),
    )
    assert pipeline.rules["watermark"].max == 0.7
    assert pipeline.download.allow_private is True
    assert pipeline.captions.checkpoint is None
    assert pipeline.sources == ["a", "b"]
    assert (pipeline.rules["static"].min, pipeline.rules["static"].max) == (0.1, 0.95)
    assert (pipeline.cut.crf, pipeline.captions.prompt) == (12, "a=b")


def test_the_last_of_two_overrides_stands() -> None:
    assert load("web", "cut.crf=1", "cut.crf=2").cut.crf == 2


def test_an_override_stays_with_its_own_pipeline() -> None:
    load("demo", "rules.duration.min=9")
    assert load("demo").rules["duration"].min == load("web").rules["duration"].min == 2


def test_extending_replaces_only_what_is_said(tmp_path: Path) -> None:
    text = """
    pipelines:
      base: {sources: [x, y], rules: {duration: {min: 2, max: 9}, aspect: {min: 1}}}
      own: {extends: base, sources: [z], rules: {duration: {min: 1}}}
      third: {extends: own, rules: {static: {max: 1}}}
    """
    own, third = (load(n, config=write(tmp_path, text)) for n in ("own", "third"))
    assert own.sources == third.sources == ["z"]
    assert (own.rules["duration"].min, own.rules["duration"].max) == (1, 9)
    assert list(third.rules) == ["duration", "aspect", "static"]


# -- fingerprints


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("rules.watermark.max=0.4", {"rules"}),
        ("scenes.min_scene_s=0.5", {"scenes"}),
        ("scenes.detector=content", {"scenes"}),
        ("scenes.trim=false", {"scenes"}),
        ("scenes.max_s=9", {"scenes"}),
        ("cut.crf=20", {"cut"}),
        ("cut.joins=false", {"cut"}),
        ("captions.prompt=a", {"captions"}),
        ("captions.num_frames=2", {"captions"}),
        ("captions.batch_size=3", set()),
        ("media.num_threads=2", set()),
        ("shards.max_videos=3", set()),
        ("sources=[a]", set()),
    ],
)
def test_only_the_stage_that_changed_has_another_fingerprint(
    override: str, stages: set[str]
) -> None:
    assert changed_stages(override) == stages


def test_keys_that_are_off_leave_the_scenes_of_older_versions_valid() -> None:
    older = {"detector": "content", "threshold": None, "min_scene_s": 0.2}
    assert load("webvid").scenes.facts() == older
    assert load("webvid", "scenes.trim=false").scenes.facts() == older
    assert load("webvid", "scenes.max_s=9").scenes.facts() == older | {"max_s": 9}


def test_the_order_of_rules_is_part_of_their_fingerprint(tmp_path: Path) -> None:
    orders = ("{static: {max: 1}, duration: {min: 2}}", "{duration: {min: 2}, static: {max: 1}}")
    prints = []
    for rules in orders:
        config = write(tmp_path, f"pipelines: {{a: {{rules: {rules}}}}}")
        prints.append(load("a", config=config).fingerprints()["rules"])
    assert prints[0] != prints[1]


def test_an_equal_number_is_no_change() -> None:
    assert changed_stages("rules.duration.min=2", "rules.watermark.max=0.50") == set()


# -- scorers


def test_a_rule_is_accepted_with_its_scorer() -> None:
    pipeline = load("web", "scorers.motion=flow", "rules.motion.min=0.01", "rules.zoom.max=0.5")
    assert pipeline.rules["motion"].min == 0.01
    assert load("web", "scorers.aesthetic=technical_quality")


def test_every_scorer_of_the_table_can_be_had() -> None:
    assert len(set(SCORES)) == len(SCORES)
    for row in TABLE:
        for place in filter(None, [row.make, row.check]):
            assert callable(table.load(place)), place
        if row.key:
            assert row.wants(Scorers(**{row.key: row.name}))
            assert all(Scorers().key_of(column) == row.key for column in row.columns)


def test_settings_of_scorers_are_the_tables() -> None:
    assert Scorers().watermark == "network" and Scorers().watermark_unsure == "pass"
    with pytest.raises(ValueError, match=r"scorers.motion is 'flwo'; allowed: flow"):
        Scorers(motion="flwo")
    with pytest.raises(ValueError, match=r"unknown key 'scorers.moton'; did you mean 'motion'"):
        Scorers(moton="flow")


def test_scorers_that_are_off_leave_old_scores_valid() -> None:
    assert changed_stages("scorers.motion=null", "scorers.aesthetic_head=null") == set()
    assert changed_stages("scorers.motion=flow") == {"scores"}
    assert changed_stages("scorers.num_workers=4") == set()
