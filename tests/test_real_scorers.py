"""vf-clean with its real scorers: clips that each break one rule, and which of them survive."""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import MakeVideo, Shot, read_frames
from rich.console import Console
from test_embeddings import build_clip, cosines

from curation.shards import KEPT, LEDGER_SCHEMA, SHARD_SCHEMA, Dataset, write_commit
from curation.subsets.asked import Order, make_plan
from curation.subsets.cleaned import execute

CONFIG = "recipes: {bare: {}}"
CAPTIONS = {"good": "a lamp", "words": "a lamp", "still": "a lamp", "soft": "a lamp", "odd": None}
SIZE = (320, 180)
DURATION_S = 1.2


def texture(path: Path, seed: int, size: tuple[int, int]) -> Path:
    """A sharp picture full of detail: coarse and fine random patches."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size[1], size[0], 3))
    for cell in (4, 8, 32):
        coarse = rng.integers(0, 256, (size[1] // cell + 1, size[0] // cell + 1, 3), np.uint8)
        out += cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST).astype(float) / 3
    cv2.imwrite(str(path), out)
    return path


@pytest.fixture(scope="module")
def clips(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same scene five times: a patch that moves over a still ground; with a line of text;
    without the patch; out of focus; and once more."""
    folder = tmp_path_factory.mktemp("scene")
    ground, patch = (
        texture(folder / "ground.png", 1, SIZE),
        texture(folder / "patch.png", 2, (96, 96)),
    )
    line = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    cv2.putText(line, "Wait for me", (40, 165), 0, 1.2, (0, 0, 0, 255), 12, cv2.LINE_AA)
    cv2.putText(line, "Wait for me", (40, 165), 0, 1.2, (255, 255, 255, 255), 3, cv2.LINE_AA)
    cv2.imwrite(str(folder / "line.png"), line)
    still = f"null[a];movie={ground}[g];[a][g]overlay"
    moving = f"{still}[b];movie={patch}[p];[b][p]overlay=x='20+120*t':y=20"
    filters = {
        "good": moving,
        "words": f"{moving}[c];movie={folder / 'line.png'}[l];[c][l]overlay",
        "still": still,
        "soft": f"{moving},gblur=sigma=3",
        "odd": moving,
    }
    shot = [Shot("color=gray:s={size}:r={fps}", DURATION_S)]
    made = {name: make_video(f"real-{name}.mp4", shot, filters=f) for name, f in filters.items()}
    return made


@pytest.fixture(scope="module")
def dataset(clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of these clips, one video each, that nothing has scored."""
    dataset = Dataset.at(tmp_path_factory.mktemp("real") / "dataset")
    rows, ledger = [], []
    for name, path in clips.items():
        facts = {
            **{"clip_id": f"{name}_0", "video_id": name, "source_url": path.name},
            **{"start_s": 0.0, "end_s": DURATION_S, "duration_s": DURATION_S, "fps": 25.0},
            **{"num_frames": len(read_frames(path)), "width": SIZE[0], "height": SIZE[1]},
            **{"codec": "h264", "scene_index": 0, "duration": DURATION_S},
            "caption": CAPTIONS[name],
        }
        media = {"bytes": path.read_bytes(), "path": f"{name}.mp4"}
        rows.append(dict.fromkeys(SHARD_SCHEMA.names) | facts | {"clip": media})
        empty = dict.fromkeys(LEDGER_SCHEMA.names) | {"decision": KEPT, "attempts": 1}
        told = {k: v for k, v in facts.items() if k in LEDGER_SCHEMA.names}
        ledger += [empty | told | {"level": level} for level in ("video", "clip")]
        ledger[-2]["clip_id"] = None
    write_commit(dataset, rows, ledger, {"cut": "test"})
    return dataset


@pytest.mark.slow
def test_each_rule_drops_the_clip_that_breaks_it(
    clips: dict[str, Path], dataset: Dataset, local_ray: None, tmp_path: Path
) -> None:
    (tmp_path / "clip").mkdir()
    clip = build_clip(tmp_path / "clip")
    (tmp_path / "pipelines.yaml").write_text(CONFIG)
    # Text is looked for at 0.2, 0.6 and 1.0 s, and every model sees the same pictures.
    looks = [read_frames(clips["good"], "rgb24")[n].picture for n in (5, 15, 25)]
    [[fits]] = cosines(clip, [looks], ["a lamp"])
    overrides = [
        *("scorers.text=rapidocr", "scorers.motion=flow", "scorers.look=pixels"),
        *("scorers.caption=clip", f"scorers.caption_checkpoint={clip}"),
        *("rules.text.max=0.02", "rules.motion.min=0.008", "rules.sharpness.min=0.2"),
        f"rules.caption_score.min={fits - 0.05}",
    ]
    places = dataset.root, str(tmp_path / "subset"), "bare", tmp_path / "pipelines.yaml"
    execute(make_plan(Order(*places, overrides)), Console(file=io.StringIO()), time.time())
    subset = Dataset.at(tmp_path / "subset")
    rows = {r["video_id"]: r for r in subset.ledger().to_pylist() if r["level"] == "clip"}
    assert {name: row["rule"] for name, row in rows.items()} == {
        "good": None, "words": "text", "still": "motion", "soft": "sharpness",
        "odd": "caption_score",
    }  # fmt: skip
    [row] = subset.rows()
    assert row["video_id"] == "good"
    assert row["caption_score"] == pytest.approx(fits, abs=0.02)
    assert row["text"] == 0.0 and rows["words"]["text"] > 0.05
    speed = 120 / SIZE[0]  # pixels a second over the longer side
    assert row["motion"] == pytest.approx(speed, rel=0.2)
    assert rows["still"]["motion"] < 0.002
    assert rows["odd"]["caption_score"] is rows["odd"]["value"] is None
