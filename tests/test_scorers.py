"""Models that look at kept clips: what they score, what a failing one costs, whole runs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from conftest import MakeVideo, Shot, read_frames
from fake_scorers import ODD_HEIGHT_PX, fakes
from rich.console import Console
from test_aesthetics import save_head
from test_captions import build_checkpoint
from test_embeddings import build_clip, cosines

from curation.captions import Blip2
from curation.flow.actors import start_models
from curation.flow.plans import execute, make_plan
from curation.flow.ray_stages import Models, SharedTally, from_rows, to_row
from curation.pipelines import Pipeline, Rule, Scorers
from curation.records import KeptClip, VideoResult, with_late_scores
from curation.scores.aesthetics import Laion
from curation.scores.burnt_in_text import TextScore
from curation.scores.classifiers import WatermarkClassifier, check_classifier, marked_labels
from curation.scores.models import Means, Seen, of_video, score_each
from curation.settings import ConfigError
from curation.shards import DROPPED, FAILED, KEPT, LEDGER_SCHEMA, SHARD_SCHEMA, Dataset
from curation.takedown.tombstones import NOTHING

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
RULES = {"duration": Rule(min=1), "text": Rule(max=0.01), "watermark": Rule(max=0.5)}


def grey(level: int) -> np.ndarray:
    return np.full((36, 64, 3), level, np.uint8)


LINE = (0.2, 0.8, 0.7, 0.9)
CLIPS = [Seen([grey(0), grey(100)]), Seen([grey(200)])]


class Detector:
    """Finds a line in pictures of level 100."""

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[list[tuple[float, ...]]]:
        return [[LINE] if 90 < picture.mean() < 110 else [] for picture in pictures]


# -- one row a clip


def test_every_clip_gets_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.scores.burnt_in_text.TextDetector", Detector)
    text = TextScore(Scorers())
    assert score_each(text, CLIPS) == [
        {"text": pytest.approx(0.05), "text_boxes": [LINE]},
        {"text": 0.0, "text_boxes": []},
    ]
    monkeypatch.setattr(Detector, "__call__", lambda _, pictures: [[(0, 0, float("nan"), 1)]] * 3)
    assert all(
        row["error"].startswith("ValueError") for row in score_each(TextScore(Scorers()), CLIPS)
    )


def test_a_mean_is_over_a_clips_own_pictures() -> None:
    model = Means("aesthetic", lambda pictures: [float(p.mean()) for p in pictures])
    assert score_each(model, CLIPS) == [{"aesthetic": 50.0}, {"aesthetic": 200.0}]


def test_a_classified_watermark_is_the_videos() -> None:
    rows = {"a": {"watermark": 0.2}, "b": {"watermark": 0.8}}
    found = of_video(rows, {"a": 2, "b": 1})
    assert found["a"] == found["b"] == {"watermark": pytest.approx(0.4)}
    rows["b"] = {"error": "it is odd"}
    assert of_video(rows, {"a": 2, "b": 1}) == {c: {"error": "it is odd"} for c in "ab"}


def answers(what: Any) -> Any:
    """A model that gives `what` for clips that begin with a black picture, and text 0.5 else."""

    def score(looks: Sequence[Seen]) -> list[dict[str, Any]]:
        rows = [what if look.pictures[0].mean() == 0 else {"text": 0.5} for look in looks]
        if any(isinstance(row, Exception) for row in rows):
            raise next(row for row in rows if isinstance(row, Exception))
        return [row for row in rows if row != "nothing"]

    return score


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        ({"text": float("nan")}, "the scorer gave nan for text"),
        ("nothing", "RuntimeError: 0 scores for 1 clips"),
    ],
)
def test_a_clip_that_a_model_fails_on_costs_no_other(what: Any, error: str) -> None:
    assert score_each(answers(what), CLIPS) == [{"error": error}, {"text": 0.5}]


def test_a_clip_without_a_picture_has_no_score() -> None:
    unseen, seen = score_each(answers({}), [Seen([]), CLIPS[1]])
    assert unseen == {"error": "ValueError: no frame of this clip was looked at"}
    assert seen == {"text": 0.5}


# -- decisions


def result(*clip_ids: str, dropped: str | None = None) -> VideoResult:
    """A video of kept clips, and one that the media stage dropped for its duration."""
    empty = dict.fromkeys(LEDGER_SCHEMA.names)
    scores = {"duration": 3.0, "watermark": 0.1}
    video = empty | {"level": "video", "decision": KEPT, "duration": 9.0}
    rows = [
        empty | scores | {"level": "clip", "clip_id": c, "decision": KEPT, "caption": c}
        for c in clip_ids
    ]
    if dropped:
        short = {"rule": "duration", "value": 0.5, "threshold": 1.0, "duration": 0.5}
        rows.append(empty | short | {"level": "clip", "clip_id": dropped, "decision": DROPPED})
    shard = dict.fromkeys(SHARD_SCHEMA.names)
    clips = [
        KeptClip(shard | scores | {"clip_id": c, "caption": c}, c.encode(), [b"caption"])
        for c in clip_ids
    ]
    return VideoResult([video, *rows], clips)


def columns(text: float) -> dict[str, Any]:
    return {"text": text, "text_boxes": [LINE] if text else []}


def test_clips_with_text_are_dropped_with_their_media() -> None:
    found = {"a": columns(0.05), "b": columns(0.0)}
    done = with_late_scores(result("a", "b", dropped="c"), found, RULES)
    video, a, b, c = done.ledger
    assert (a["decision"], a["rule"], a["value"], a["threshold"]) == (DROPPED, "text", 0.05, 0.01)
    assert a["text_boxes"] == [LINE]
    assert (b["decision"], b["text"]) == (KEPT, 0.0)
    assert (c["rule"], c["text"]) == ("duration", None)  # not looked at
    assert video["decision"] == KEPT
    [left] = done.clips
    assert (left.clip_id, left.row["text"]) == ("b", 0.0)
    assert (left.media, left.caption_frames) == (b"b", [b"caption"])


def test_the_first_rule_in_config_order_is_named() -> None:
    found = {"a": columns(0.05) | {"watermark": 0.9}}
    for order in (RULES, dict(reversed(RULES.items()))):
        done = with_late_scores(result("a"), found, order)
        assert done.ledger[1]["rule"] == next(n for n in order if n != "duration")
    assert done.clips == []


def test_a_video_that_keeps_no_clip_is_dropped_by_the_rule_that_came_furthest() -> None:
    done = with_late_scores(result("a", dropped="c"), {"a": columns(0.05)}, RULES)
    video = done.ledger[0]
    assert (video["decision"], video["rule"], video["value"]) == (DROPPED, "text", 0.05)
    assert done.clips == []


def test_a_clip_whose_scorer_failed_is_failed_and_so_is_its_video() -> None:
    found: dict[str, Any] = {"a": {"error": "RuntimeError: out of memory"}, "b": columns(0.0)}
    video, a, b = with_late_scores(result("a", "b"), found, RULES).ledger
    assert (a["decision"], a["error_class"]) == (FAILED, "scorer")
    assert a["message"] == "RuntimeError: out of memory"
    assert (b["decision"], video["decision"]) == (KEPT, KEPT)
    alone = with_late_scores(result("a", dropped="c"), found, RULES)
    assert (alone.ledger[0]["decision"], alone.ledger[0]["error_class"]) == (FAILED, "scorer")
    assert alone.clips == []


def test_a_score_that_is_no_number_does_not_pass() -> None:
    for score in (float("nan"), None):
        done = with_late_scores(result("a"), {"a": columns(0) | {"text": score}}, RULES)
        assert (done.ledger[1]["decision"], done.ledger[1]["rule"]) == (DROPPED, "text")


@pytest.mark.parametrize(("how", "says"), [("crash", "crashed: "), ("hang", "timeout: no score")])
def test_a_model_that_hangs_or_dies_in_a_run_costs_one_clip(
    local_ray: None, how: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.flow.ray_stages.MODEL_TIMEOUT_S", 2.0)
    pipeline = Pipeline(scorers=Scorers(text="rapidocr"), rules={"text": Rule(max=0.6)})
    tally = SharedTally({}, 8, NOTHING)
    stage = Models(start_models(fakes(text=how).models, 1, 0), [], pipeline, tally)
    heights = {"a": 40, "b": ODD_HEIGHT_PX, "c": 40}
    video = result(*heights)
    for clip in video.clips:
        level = 250 if clip.clip_id == "c" else 128
        picture = np.full((heights[clip.clip_id], 64, 3), level, np.uint8)
        clip.model_frames.append(cv2.imencode(".jpg", picture)[1].tobytes())
    [done] = from_rows(pa.concat_tables(stage(to_row(video))))
    told = {row["clip_id"]: row for row in done.ledger[1:]}
    assert (told["a"]["decision"], round(told["a"]["text"], 1)) == (KEPT, 0.5)
    assert (told["b"]["decision"], told["b"]["error_class"]) == (FAILED, "scorer")
    assert told["b"]["message"].startswith(says)
    assert (told["c"]["decision"], told["c"]["rule"]) == (DROPPED, "text")
    [left] = done.clips
    assert (left.clip_id, left.media, left.model_frames) == ("a", b"a", [])


# -- a watermark classifier


def build_classifier(folder: Path, labels: Sequence[str] = ("no_watermark", "watermark")) -> Path:
    """A small random ViT of the real classes, saved as hub checkpoints are."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, initializer_range=0.5, num_labels=len(labels),
        id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def classifier(folder: Path | None) -> Scorers:
    return Scorers(watermark="classifier", watermark_checkpoint=folder and str(folder))


def test_a_classifier_scores_pictures_by_its_watermark_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)]
    first = WatermarkClassifier(classifier(build_classifier(tmp_path / "m")))
    second = WatermarkClassifier(
        classifier(build_classifier(tmp_path / "n", ("Watermark", "clean")))
    )
    scores = first(pictures)
    assert len(scores) == len({round(s, 4) for s in scores}) == 3  # the picture matters
    assert second(pictures) == pytest.approx([1 - s for s in scores], abs=1e-5)
    assert first(pictures[:1]) == pytest.approx(scores[:1], abs=1e-5)
    assert first([]) == []


def test_labels_that_deny_are_no_watermark() -> None:
    labels = {0: "not watermarked", 1: "Watermark", 2: "non-watermark", 3: "piano watermark"}
    assert marked_labels("m", labels) == [1, 3]


@pytest.mark.parametrize("labels", [("cat", "dog"), ("no_watermark", "clean"), ("watermark",) * 2])
def test_a_classifier_of_something_else_is_refused(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="needs one that says watermark"):
        check_classifier(classifier(build_classifier(tmp_path, labels)))


def test_missing_weights_say_what_to_do_before_any_work(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path / "m")
    check_classifier(classifier(folder))
    (folder / "model.safetensors").unlink()
    for scorers in (classifier(None), classifier(tmp_path / "none"), classifier(folder)):
        with pytest.raises(ConfigError, match=r"scorers\.watermark_checkpoint.*=network"):
            check_classifier(scorers)


# -- whole runs


@pytest.fixture(scope="module")
def written(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos: clean.mp4, and lines.mp4 with a line of text in its second shot."""
    folder = tmp_path_factory.mktemp("written")
    picture = np.zeros((180, 320, 4), np.uint8)
    cv2.putText(picture, "Wait for me", (60, 165), 0, 0.8, (255, 255, 255, 255), 2, cv2.LINE_AA)
    cv2.imwrite(str(folder / "line.png"), picture)
    shots = (Shot("fractal", 1.0), Shot("gradient", 1.2))
    late = f"null[a];movie={folder / 'line.png'}[b];[a][b]overlay=enable='gte(t,1)'"
    out = folder / "videos"
    out.mkdir()
    (out / "clean.mp4").write_bytes(make_video("clean.mp4", shots=shots).read_bytes())
    lines = make_video("lines.mp4", shots=shots, filters=late)
    (out / "lines.mp4").write_bytes(lines.read_bytes())
    return out


def curate(inputs: Path, output: Path, *overrides: str) -> Dataset:
    small = ["rules.resolution.min=180", "rules.duration.min=0.5", *overrides]
    plan = make_plan([str(inputs)], "web", CONFIG, str(output), small, None)
    execute(plan, Console(file=io.StringIO()), time.time())
    return Dataset.at(output)


@pytest.mark.slow
def test_clips_with_text_are_dropped_by_a_run(
    local_ray: None, written: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    # A line over all of one shot of two may be a mark to the watermark detector: not asked here.
    how = ["scorers.text=rapidocr", "rules.watermark.max=1"]
    dataset = curate(written, output, *how, "rules.text.max=0.005")
    rows = [r for r in dataset.ledger().to_pylist() if r["level"] == "clip"]
    told = {
        (Path(r["source_url"]).stem, round(r["start_s"])): (r["decision"], r["rule"]) for r in rows
    }
    assert told == {
        ("clean", 0): (KEPT, None),
        ("clean", 1): (KEPT, None),
        ("lines", 0): (KEPT, None),
        ("lines", 1): (DROPPED, "text"),
    }
    [line] = [r for r in rows if r["rule"] == "text"]
    assert 0.02 < line["text"] == line["value"] < 0.2
    [[x0, y0, x1, y1]] = line["text_boxes"]
    width = cv2.getTextSize("Wait for me", 0, 0.8, 2)[0][0]
    assert (x0, x1) == pytest.approx((60 / 320, (60 + width) / 320), abs=0.04)
    assert (y0 + y1) / 2 == pytest.approx(158 / 180, abs=0.05)
    assert [row["text"] for row in dataset.rows(["text"])] == [0.0] * 3
    funnel = json.loads(dataset.read_bytes("run.json"))["funnel"]
    assert funnel["clips"]["dropped"] == {"text": 1}
    said = curate(written, output, *how, "rules.text.max=0.5")
    assert len(list(said.rows(["clip_id"]))) == 4  # its media was never stored: redone


def test_a_run_scores_watermarks_with_a_named_classifier(
    local_ray: None, written: Path, tmp_path: Path
) -> None:
    folder = build_classifier(tmp_path / "model")
    how = ["scorers.watermark=classifier", f"scorers.watermark_checkpoint={folder}"]
    dataset = curate(written, tmp_path / "out", *how, "rules.watermark.max=1")
    clips = [r for r in dataset.ledger().to_pylist() if r["level"] == "clip"]
    scores = {r["video_id"]: r["watermark"] for r in clips}
    assert len(clips) == 4 and len(set(scores.values())) == 2  # a video's own, in every clip
    assert all(r["watermark"] == scores[r["video_id"]] for r in clips)


@pytest.mark.slow
def test_a_run_scores_looks_before_captions_and_captions_behind_them(
    make_video: MakeVideo, local_ray: None, tmp_path: Path
) -> None:
    """Tiny random CLIP, head and BLIP-2 over four flat pictures; bounds between known scores."""
    colours = ("orange", "teal", "green", "violet")
    (tmp_path / "clip").mkdir()
    head, clip = save_head(tmp_path / "head.pth", "linear"), build_clip(tmp_path / "clip")
    blip2 = build_checkpoint(tmp_path / "blip2", "opt")
    models = [
        *("captions.model=blip2", f"captions.checkpoint={blip2}", "captions.device=cpu"),
        *("scorers.aesthetic=laion", f"scorers.aesthetic_checkpoint={clip}"),
        *(f"scorers.aesthetic_head={head}", "scorers.caption=clip"),
        *(f"scorers.caption_checkpoint={clip}", "rules.static.max=1", "rules.black_bars.max=1"),
    ]
    (tmp_path / "videos").mkdir()
    pictures = []
    for colour in colours:
        path = make_video(f"{colour}.mp4", [Shot(f"color={colour}:s={{size}}:r={{fps}}", 1.0)])
        (tmp_path / "videos" / path.name).write_bytes(path.read_bytes())
        pictures.append(read_frames(path, "rgb24")[12].picture)
    plan = make_plan(
        [str(tmp_path / "videos")], "web", CONFIG, str(tmp_path / "none"), models, None
    )
    looks = Laion(plan.pipeline.scorers)([picture[..., ::-1] for picture in pictures])
    texts = Blip2(plan.pipeline.captions).caption(pictures)
    fits = cosines(clip, [[picture] for picture in pictures], texts).diagonal()
    ugly, *rest = sorted(range(4), key=lambda n: looks[n])
    misfit, *kept = sorted(rest, key=lambda n: fits[n])
    bounds = [
        f"rules.aesthetic.min={(looks[ugly] + min(looks[n] for n in rest)) / 2}",
        f"rules.caption_score.min={(fits[misfit] + min(fits[n] for n in kept)) / 2}",
    ]
    dataset = curate(tmp_path / "videos", tmp_path / "out", *models, *bounds)
    rows = {Path(r["source_url"]).stem: r for r in dataset.ledger().to_pylist() if r["clip_id"]}
    close = {"abs": 0.004}
    assert len(rows) == 4
    for n, colour in enumerate(colours):
        row, late = rows[colour], n != ugly  # what looks bad is not captioned
        assert row["rule"] == {ugly: "aesthetic", misfit: "caption_score"}.get(n)
        assert row["aesthetic"] == pytest.approx(looks[n], **close)
        assert row["caption"] == (texts[n] if late else None)
        assert row["caption_score"] == (pytest.approx(fits[n], **close) if late else None)
    stored = list(dataset.rows(["source_url", "caption_score"]))
    assert {Path(r["source_url"]).stem for r in stored} == {colours[n] for n in kept}
    assert all(
        r["caption_score"] == rows[Path(r["source_url"]).stem]["caption_score"] for r in stored
    )
    [video] = [r for r in dataset.ledger().to_pylist() if r["level"] == "video"
               and r["source_url"].endswith(f"{colours[misfit]}.mp4")]  # fmt: skip
    assert (video["decision"], video["rule"]) == (DROPPED, "caption_score")
    assert dict(video["stage_s"])["models"] > 0


def test_a_rule_without_its_scorer_is_a_mistake(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rules\.text needs scorers\.text.*rapidocr"):
        curate(written, tmp_path / "none", "rules.text.max=0.01")
    with pytest.raises(ConfigError, match=r"scorers\.watermark_checkpoint"):
        curate(written, tmp_path / "none", "scorers.watermark=classifier")
    assert not (tmp_path / "none").exists()
