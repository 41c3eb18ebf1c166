"""VideoClips: every clip once an epoch, in workers and ranks, decoded as the trainer does."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from training_media import FPS, clip, level, mp4, small_dataset, write_dataset

from curation.settings import ConfigError
from training.data.clips import VideoClips

SIZE: dict[str, Any] = {"num_frames": 2, "height": 16, "width": 32, "fps": FPS, "held_out": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_dataset(tmp_path_factory.mktemp("data") / "a"))


def ids(clips: VideoClips) -> list[str]:
    return [each["clip_id"] for each in clips]


def test_an_epoch_has_every_clip_once_in_an_order_of_its_own(data: str) -> None:
    clips = VideoClips(data, **SIZE)
    assert len(clips) == 7
    first = ids(clips)
    assert sorted(first) == [f"c{n}" for n in range(7)]
    assert ids(clips) == first
    clips.epoch = 1
    assert sorted(ids(clips)) == sorted(first) and ids(clips) != first
    assert ids(VideoClips(data, seed=5, **SIZE)) != first


def test_a_clip_is_pixels_and_its_caption(data: str) -> None:
    found = next(each for each in VideoClips(data, **SIZE) if each["clip_id"] == "c0")
    assert found["caption"] == "clip c0" and found["fps"] == FPS
    assert found["pixels"].dtype == torch.uint8 and found["pixels"].shape == (2, 16, 32, 3)
    means = found["pixels"].float().mean((1, 2, 3)).tolist()
    start = round((means[0] - level(0)) / (level(1) - level(0)))
    assert means == pytest.approx([level(start), level(start + 1)], abs=4)


def test_workers_and_ranks_share_an_epoch(data: str) -> None:
    ranks = [VideoClips(data, rank=n, world_size=2, **SIZE) for n in range(2)]
    assert sum(map(len, ranks)) == 7 and all(len(ids(each)) == len(each) for each in ranks)
    assert sorted(ids(ranks[0]) + ids(ranks[1])) == [f"c{n}" for n in range(7)]
    loader = DataLoader(VideoClips(data, **SIZE), batch_size=2, num_workers=2)
    batches = list(loader)
    assert all(batch["pixels"].shape[1:] == (2, 16, 32, 3) for batch in batches)
    assert sorted(each for batch in batches for each in batch["clip_id"]) == [
        f"c{n}" for n in range(7)
    ]
    # what a worker that is no fork gets
    assert ids(pickle.loads(pickle.dumps(ranks[1]))) == ids(ranks[1])


def test_what_does_not_decode_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [clip("good", mp4(4), 4), clip("broken", b"no video", 4)]
    folder = write_dataset(tmp_path / "a", rows)
    with caplog.at_level(logging.WARNING):
        assert ids(VideoClips(str(folder), **SIZE)) == ["good"]
    assert "left out" in caplog.text and str(folder) in caplog.text


def test_a_dataset_without_a_fitting_clip_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no clip to train on"):
        VideoClips(data, **{**SIZE, "num_frames": 50})
    with pytest.raises(ConfigError, match="--data"):
        VideoClips(str(tmp_path / "none"), **SIZE)
