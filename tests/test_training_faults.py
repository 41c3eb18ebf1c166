"""Faults that made results wrong or runs impossible, each of them once met."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace
from training_media import FPS, TINY, clip, mp4, small_dataset, write_dataset

from training.config import load_config
from training.data.batches import Batches, Sample
from training.data.orders import Mixture
from training.data.rows import open_rows
from training.data.shapes import best_fit, shapes_of
from training.data.videos import SampleShape, read_frames
from training.learning.losses import Objective, micro_batches
from training.sample import sample as vf_sample
from training.train import train as vf_train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


def train(data: Path, run: Path, *overrides: str, **more: Any) -> None:
    vf_train("tiny", [str(data)], run, set_=[*TINY, *overrides], **more)


def refused(capsys: pytest.CaptureFixture[str], call: Callable[[], None], code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        call()
    assert error.value.code == code
    return capsys.readouterr().err


def lines(run: Path, key: str) -> list[dict[str, Any]]:
    every = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in every if key in line]


@pytest.mark.parametrize("weights", [(1.2345, 2.3456, 3.4567), (0.001, 999999.0), (1.001,) * 3])
def test_a_mixture_of_any_weights(weights: tuple[float, ...]) -> None:
    mixture = Mixture(weights)
    assert len(mixture.sequence) <= 10_000
    for n, weight in enumerate(weights):
        assert mixture.counts[n] > 0
        share = mixture.counts[n] / sum(mixture.counts)
        assert share == pytest.approx(weight / sum(weights), abs=1e-4)
    got = Counter(mixture.sequence)
    assert tuple(got[n] for n in range(len(weights))) == mixture.counts


def test_a_held_out_clip_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """c1 and c7 are held out."""
    rows = [clip(f"c{n}", b"junk" if n == 1 else mp4(4), 4) for n in range(8)]
    train(write_dataset(tmp_path / "a", rows), tmp_path / "run", "max_steps=1")
    assert "held-out clip that is not evaluated, a/c1: does not decode" in capsys.readouterr().out
    told = lines(tmp_path / "run", "held_out")
    assert [line["bad_row"] for line in told] == ["c1"]


def test_off_is_a_word() -> None:
    config = load_config("tiny", [*TINY, "unet.swap_attention=off"])
    assert config.unet["swap_attention"] == "off"


def test_a_dry_run_checks_what_a_run_checks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, told in (
        (("unet.swap_attention=sideways",), "swap_attention='sideways'"),
        (("unet.in_channels=4",), "has 48 channels and the U-Net takes 4"),
        (("text=open_clip", "text_path=/no/weights"), "no OpenCLIP weights"),
    ):
        call = lambda wrong=wrong: train(data, tmp_path / "x", *wrong, dry_run=True)  # noqa: E731
        assert told in refused(capsys, call)
        assert not (tmp_path / "x").exists()
    train(data, tmp_path / "run", "max_steps=2")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    call = lambda: train(data, tmp_path / "run", "learning_rate=1", dry_run=True)  # noqa: E731
    assert "learning_rate was 0.001, is 1.0" in refused(capsys, call)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    call = lambda: train(data, tmp_path, dry_run=True)  # noqa: E731
    assert "is not a run" in refused(capsys, call)


def test_a_loss_that_is_no_number_is_skipped_a_few_times(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clip of six is met once in three steps."""
    plain = Objective.latents_of

    def poisoned(self: Objective, samples: list[Sample]) -> torch.Tensor:
        bad = any(sample.clip_id == "c4" for sample in samples)
        return plain(self, samples) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(Objective, "latents_of", poisoned)
    run = tmp_path / "run"
    train(data, run, "max_steps=6", "checkpoint_every=6")
    skipped, kept = lines(run, "skipped_step"), lines(run, "loss")
    assert len(skipped) == 2 and len(kept) == 4
    assert all("c4" in line["skipped_step"] for line in skipped)
    assert sorted(line["step"] for line in skipped + kept) == [1, 2, 3, 4, 5, 6]
    told = refused(capsys, lambda: train(data, tmp_path / "two", "max_skipped_steps=0"), code=1)
    assert "Lower learning_rate" in told
    # It is not met for ever: a run that goes on remembers.
    train(data, run, "max_steps=9", "max_skipped_steps=3", "checkpoint_every=9")
    told = refused(capsys, lambda: train(data, run, "max_steps=12", "max_skipped_steps=3"), code=1)
    assert "3 steps were skipped before" in told


def test_checkpoints_by_time_and_milestones(data: Path, tmp_path: Path) -> None:
    """Each step takes longer than a nanosecond; two checkpoints stay, and every third."""
    sets = ("max_steps=7", "checkpoint_every=1000", "milestone_every=3")
    train(data, tmp_path / "run", *sets, "checkpoint_every_s=1e-9", "evaluate_every=1000")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"step-{n:08d}" for n in (3, 6, 7)]


def test_a_clip_of_too_few_frames_a_second_is_left_out() -> None:
    shapes = [SampleShape(3, 16, 16, fps=FPS)]
    assert best_fit(shapes, 12, 12 / FPS, 32, 16) == 0
    assert best_fit(shapes, 12, 12 / (0.96 * FPS), 32, 16) == 0
    assert best_fit(shapes, 12, 24 / FPS, 32, 16) is None  # each frame would be shown twice


def test_a_rate_is_drawn_for_each_sample(tmp_path: Path) -> None:
    """Of those that its clip has frames for: a short one is never read slowly."""
    rows = [clip("long", mp4(12), 12), clip("short", mp4(5), 5)]
    folder = write_dataset(tmp_path / "a", rows)
    config = load_config(
        "tiny", [*TINY, "stride=null", "num_frames=4", "fps=8", "held_out=0",
                 "unet.fps_conditioning=true", "fps_choices=[4, 8, 16]"]
    )  # fmt: skip
    batches = Batches([open_rows(str(folder), "a", 1, shapes_of(config), 1e9, 0)], config)
    met: Counter[tuple[str, float]] = Counter()
    for n in range(40):
        sample = batches.read(n)
        assert isinstance(sample, Sample) and sample.raw is not None
        met[sample.clip_id, sample.fps] += 1
        greys = sample.raw.float().mean((1, 2, 3))
        assert (greys.diff().mean() / 12).round() == FPS / sample.fps  # a grey is 12 a frame
    assert set(met) == {("long", 4.0), ("long", 8.0), ("short", 8.0)}


def test_micro_batches_are_bounded_by_pixels() -> None:
    config = load_config("tiny", [*TINY, "num_frames=4", "height=16", "width=16",
                                  "micro_batch_size=4"])  # fmt: skip

    def sizes(shape: tuple[int, ...], **more: Any) -> list[int]:
        one = Sample("a", "c", 0, "", torch.zeros(shape), None, **more)  # type: ignore[arg-type]
        return [len(part) for part in micro_batches([one] * 8, config, 4)]

    assert sizes((4, 16, 16, 3)) == [4, 4]
    assert sizes((8, 16, 16, 3)) == [2, 2, 2, 2]
    assert sizes((1, 16, 16, 3)) == [8]
    assert sizes((1, 1, 1, 3), latents=torch.zeros(48, 8, 4, 4)) == [2, 2, 2, 2]


def test_untagged_hd_is_bt_709() -> None:
    """A red that was encoded as BT.709 without saying so; read as BT.601 it is another one."""
    red = np.zeros((720, 1280, 3), np.uint8)
    red[..., 0] = 200
    sink = io.BytesIO()
    with av.open(sink, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.options = {"crf": "4", "preset": "ultrafast", "threads": "1"}
        frame = av.VideoFrame.from_ndarray(red, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        planes = [np.frombuffer(bytes(plane), np.uint8) for plane in frame.planes]
        untagged = av.VideoFrame(1280, 720, "yuv420p")
        for plane, values in zip(untagged.planes, planes, strict=True):
            plane.update(values.tobytes())
        container.mux(stream.encode(untagged))
        container.mux(stream.encode())
    seen = read_frames(sink.getvalue(), SampleShape(1, 16, 16, FPS), 0.0)
    assert np.abs(seen.reshape(-1, 3).mean(0) - (200, 0, 0)).max() < 4


def test_a_run_that_starts_from_another_draws_anew(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(data, first, "max_steps=3")
    train(data, second, "max_steps=3", init=str(first))
    digests = [[line["clips_digest"] for line in lines(run, "loss")] for run in (first, second)]
    assert digests[0] != digests[1]
    train(data, tmp_path / "again", "max_steps=3", init=str(first))
    assert [line["loss"] for line in lines(tmp_path / "again", "loss")] == [
        line["loss"] for line in lines(second, "loss")
    ]


def test_all_of_the_sampler_is_within_reach(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", "learning_rate=1e-2", "max_steps=3")

    def sampled(**changes: Any) -> tuple[tuple[int, ...], bytes]:
        out = tmp_path / "out.mp4"
        vf_sample(tmp_path / "run", "clip c1", out, **{"guidance": 3.0, "steps": 4, **changes})
        with av.open(str(out)) as container:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        return frames.shape, frames.tobytes()

    plain = sampled()
    assert plain[0] == (2, 16, 16, 3)
    assert sampled(frames=3, width=24, height=32, fps=4)[0] == (3, 32, 24, 3)
    for change in ({"negative": "clip c2"}, {"guidance_rescale": 0.7}, {"sampler": "ddim"}):
        assert sampled(**change)[1] != plain[1], change
