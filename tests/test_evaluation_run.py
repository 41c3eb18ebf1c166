"""Protocols, the folders of public releases, and a whole vf-eval of a tiny run."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import ffmpeg
from test_evaluation_clipsim import write_model
from training_media import TINY, clip, level, mp4, write_dataset
from typer.testing import CliRunner

from curation.settings import ConfigError
from curation.shards import is_held_out
from training import evaluate, sample, train
from training.data.videos import REFERENCES, SampleShape, fits, read_frames
from training.evaluation import clipsim, protocols, scoring
from training.evaluation.i3d import Features
from training.evaluation.protocols import PROTOCOLS, load_protocol
from training.evaluation.references import candidates, reference

SMALL = ["num_frames=10", "height=16", "width=32"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


OTHER = {
    **{"prompts": "others", "num_samples": 99, "num_frames": 24, "fps": 25, "height": 32},
    **{"width": 64, "resize": "crop", "covariance": "N-1", "clip_frames": "squash", "seed": 1},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_setting_changes_the_hash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_protocol(name, [])
    assert set(OTHER) == set(protocols.Protocol.model_fields) - {"name"}
    hashes = {plain.hash} | {load_protocol(name, [f"{k}={v}"]).hash for k, v in OTHER.items()}
    hashes |= {load_protocol(other, []).hash for other in PROTOCOLS}
    assert len(hashes) == 1 + len(OTHER) + len(PROTOCOLS) - 1
    assert load_protocol(name, []).hash == plain.hash
    monkeypatch.setitem(protocols.FIXED, "version", 2)
    assert load_protocol(name, []).hash not in hashes


def test_unknown_settings_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean num_frames"):
        load_protocol("ucf101", ["num_frame=16"])
    with pytest.raises(ConfigError, match="choose one of"):
        load_protocol("ucf102", [])
    with pytest.raises(ConfigError, match="num_frames=2"):
        load_protocol("ucf101", ["num_frames=2"])


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_ucf101_is_balanced_and_says_words(tmp_path: Path) -> None:
    for name, count in (("ApplyEyeMakeup", 3), ("YoYo", 5)):
        for n in range(count):
            write(tmp_path / f"UCF-101/{name}/v_{name}_g01_c{n:02}.avi", mp4(12 if n else 5))
    protocol = load_protocol("ucf101", ["num_samples=4", *SMALL])
    found = reference(protocol, tmp_path)
    assert found.too_short <= 2  # the first video of each class has 5 frames
    assert sorted({i.prompt for i in found.items}) == [
        "a video of apply eye makeup",
        "a video of yo yo",
    ]
    assert sum("Apply" in item.id for item in found.items) == 2
    other = reference(load_protocol("ucf101", ["num_samples=4", "seed=1", *SMALL]), tmp_path)
    assert [i.id for i in found.items] != [i.id for i in other.items]
    again = reference(protocol, tmp_path, ids=[i.id for i in found.items])
    assert [(i.id, i.start, i.seed) for i in again.items] == [
        (i.id, i.start, i.seed) for i in found.items
    ]
    for text in ("{", "[1]"):
        (tmp_path / "prompts.json").write_text(text)
        with pytest.raises(ConfigError, match=r"prompts\.json is not as released"):
            reference(protocol, tmp_path)
    with pytest.raises(ConfigError, match="2 classes, of 101"):
        reference(load_protocol("ucf101", []), tmp_path)
    (tmp_path / "UCF-101/Bare").mkdir()
    with pytest.raises(ConfigError, match="no videos in Bare"):
        reference(protocol, tmp_path)
    (tmp_path / "UCF-101/Bare").rmdir()
    (tmp_path / "prompts.json").write_text('{"YoYo": "a yo-yo"}')
    with pytest.raises(ConfigError, match="1 classes of 2"):
        reference(protocol, tmp_path)
    (tmp_path / "prompts.json").write_text('{"YoYo": "a yo-yo", "ApplyEyeMakeup": "paint"}')
    assert {i.prompt for i in reference(protocol, tmp_path).items} == {"a yo-yo", "paint"}


@pytest.mark.parametrize("b_frames", [0, 2])
def test_avi_is_read_with_b_frames_too(b_frames: int) -> None:
    """Levels of frames 3 to 12, from a file as UCF-101's are: MPEG-4 in AVI."""
    sink = io.BytesIO()
    with av.open(sink, "w", "avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.options = {"bf": str(b_frames)}
        for n in range(16):
            grey = np.full((16, 32, 3), level(n), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sampling = SampleShape(10, 16, 32, 25)
    assert fits(sink.getvalue(), sampling)
    read = read_frames(sink.getvalue(), sampling, 0.5, REFERENCES)
    assert read.mean((1, 2, 3)) == pytest.approx([level(n) for n in range(3, 13)], abs=5.9)


def test_frames_that_an_edit_list_hides_are_not_taken(tmp_path: Path) -> None:
    """A release's file that was cut without encoding: its first frames are there, not shown."""
    write(tmp_path / "whole.mp4", mp4(24))  # a keyframe every six
    ffmpeg("-ss", 0.5, "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4")
    sampling = SampleShape(10, 16, 32, 8)
    read = read_frames((tmp_path / "cut.mp4").read_bytes(), sampling, 0.0)
    assert read.mean((1, 2, 3)) == pytest.approx([level(n) for n in range(4, 14)], abs=4)


def test_msrvtt_draws_one_caption_of_each_video(tmp_path: Path) -> None:
    sentences = [{"video_id": f"video{v}", "caption": f"v{v} c{c}", "sen_id": 10 * v + c}
                 for v in range(5) for c in range(20)]  # fmt: skip
    protocol = load_protocol("msrvtt", ["num_samples=5", *SMALL])
    with pytest.raises(ConfigError, match=r"missing \(test_videodatainfo"):
        reference(protocol, tmp_path)
    (tmp_path / "test_videodatainfo.json").write_text('{"videos": []}')
    with pytest.raises(ConfigError, match=r"not as released .KeyError: 'sentences'"):
        reference(protocol, tmp_path)
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps({"sentences": sentences}))
    with pytest.raises(ConfigError, match=r"5 of 5 files are missing.*TestVideo/video7010"):
        reference(protocol, tmp_path)
    for v in range(5):
        write(tmp_path / f"TestVideo/video{v}.mp4", mp4(12))
    items = reference(protocol, tmp_path).items
    assert all(item.prompt.startswith(f"v{item.id[5:]} ") for item in items)
    assert len({item.prompt.split()[1] for item in items}) > 1
    assert len({item.seed for item in items}) == 5
    again = reference(load_protocol("msrvtt", ["num_samples=5", "seed=3", *SMALL]), tmp_path)
    assert {i.prompt for i in again.items} != {i.prompt for i in items}


def test_webvid_is_read_from_its_list(tmp_path: Path) -> None:
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    for n in range(5):
        rows.append(f'{n},http://x,PT1S,p{n % 2},"red, {n}"')
        write(tmp_path / f"videos/p{n % 2}/{n}.mp4", mp4(12 if n else 4))
    (tmp_path / "results_2M_val.csv").write_text("id,name\n1,x")
    with pytest.raises(ConfigError, match=r"not as released .KeyError: 'videoid'"):
        reference(load_protocol("webvid-val", SMALL), tmp_path)
    (tmp_path / "results_2M_val.csv").write_text("\n".join(rows))
    found = reference(load_protocol("webvid-val", ["num_samples=4", *SMALL]), tmp_path)
    assert found.too_short <= 1
    assert {i.id: i.prompt for i in found.items} == {str(n): f"red, {n}" for n in range(1, 5)}
    with pytest.raises(ConfigError, match=r"5 clips of which 1 are too short.*num_samples=4"):
        reference(load_protocol("webvid-val", ["num_samples=5", *SMALL]), tmp_path)
    write(tmp_path / "videos/p0/2.mp4", b"no video")
    with pytest.raises(ConfigError, match="2 does not open"):
        reference(load_protocol("webvid-val", ["num_samples=5", *SMALL]), tmp_path)
    with pytest.raises(ConfigError, match=r"is no folder.*VIDEOID"):
        candidates(load_protocol("webvid-val", []), tmp_path / "none", None)


def invoke(app: Any, *arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


# Five videos of the half that is held out, three that are trained on.
IDS = [f"c{n}" for n in range(40)]
NAMES = [i for i in IDS if is_held_out(i, 0.5)][:5] + [i for i in IDS if not is_held_out(i, 0.5)][
    :3
]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset, and a run that was trained on it and held out five clips."""
    folder = tmp_path_factory.mktemp("run")
    rows = [clip(name, mp4(12 + n), 12 + n) for n, name in enumerate(NAMES)]
    data = write_dataset(folder / "data", rows)
    sets = [part for each in (*TINY, "num_frames=10", "held_out=0.5", "max_steps=2")
            for part in ("--set", each)]  # fmt: skip
    done = invoke(train.app, "--preset", "tiny", "--data", data, "--output", folder / "run", *sets)
    assert done.exit_code == 0, done.output
    return data, folder / "run"


def cheap_network(frames: torch.Tensor) -> torch.Tensor:
    """Stands for I3D: 400 fixed projections of an 8x8 picture of each third frame."""
    small = torch.nn.functional.adaptive_avg_pool3d(frames, (3, 8, 8)).flatten(1)
    generator = torch.Generator().manual_seed(0)
    return small @ torch.randn(small.shape[1], 400, generator=generator)


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = write_model(tmp_path, "vf-eval-quickgelu", True)
    features = Features(cheap_network, "untrained-features", "seed 0")
    monkeypatch.setattr(scoring, "untrained_i3d", lambda device: features)
    monkeypatch.setattr(scoring, "load_clip", partial(clipsim.load_clip, model=tiny))


def test_a_whole_evaluation(
    tiny_run: tuple[Path, Path], tmp_path: Path, small_networks: None
) -> None:
    data, run = tiny_run
    sets = [part for each in (*SMALL, "num_samples=5") for part in ("--set", each)]

    def measured(output: Path, *more: object) -> Any:
        return invoke(evaluate.app, "--protocol", "dataset", "--reference", data, "--run", run,
                      "--output", output, "--i3d", "untrained", "--clip", "untrained", *sets,
                      *more)  # fmt: skip

    first = measured(tmp_path / "a", "--keep-clips")
    assert first.exit_code == 0, first.output
    assert "fvd (untrained-features)" in first.output and "at infinity" in first.output
    assert "clipsim (untrained-features)" in first.output
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["n"], result["too_short"]) == (5, 0)
    assert result["scores"]["fvd"]["value"] > 0 and result["hash"] in result["name"]
    held_out = sorted(p.stem for p in (tmp_path / "a" / "clips").glob("*.mp4"))
    assert held_out == sorted(NAMES[:5])

    before = (tmp_path / "a" / "result.json").read_bytes()
    (tmp_path / "a" / "parts" / "000001.npz").unlink()
    again = measured(tmp_path / "a", "--keep-clips")
    assert "1 of 2 parts are there already" in again.output
    assert (tmp_path / "a" / "result.json").read_bytes() == before

    refused = measured(tmp_path / "a", "--steps", 3)
    assert refused.exit_code == 2 and "another evaluation" in refused.output
    assert measured(tmp_path / "b", "--steps", 3).exit_code == 0
    compared = invoke(evaluate.app, "--compare", tmp_path / "a/result.json",
                      tmp_path / "b/result.json")  # fmt: skip
    assert compared.exit_code == 0 and "fvd (untrained-features): A " in compared.output


def test_clips_that_were_trained_on_are_refused(tiny_run: tuple[Path, Path]) -> None:
    data, run = tiny_run
    done = invoke(evaluate.app, "--protocol", "dataset", "--reference", data, "--run", run,
                  "--output", run.parent / "e", "--set", "num_samples=6", "--set",
                  "num_frames=10", "--clip", "none", "--i3d", "untrained")  # fmt: skip
    assert done.exit_code == 2 and "has 5 clips of held-out videos" in done.output
    assert "--set num_samples=5" in done.output


def result(path: Path, **changes: Any) -> Path:
    score = {"value": 10.0, "interval": [9.0, 11.0]}
    told = {
        "name": "dataset", "hash": "abc", "items": "i", "reference_sha256": "r",
        "networks": {"i3d": {"label": "i3d-kinetics-400", "sha256": "1"}},
        "scores": {"fvd": {**score, "features": "i3d-kinetics-400"}, "flicker": score},
    }  # fmt: skip
    path.write_text(json.dumps({**told, **changes}))
    return path


def test_unlike_results_are_not_compared(tmp_path: Path) -> None:
    a = result(tmp_path / "a.json")
    unlike = {"hash": "x", "items": "x", "reference_sha256": "x",
              "networks": {"i3d": {"label": "untrained-features", "sha256": "1"}}}  # fmt: skip
    for key, value in unlike.items():
        done = invoke(evaluate.app, "--compare", a, result(tmp_path / "b.json", **{key: value}))
        assert done.exit_code == 2 and "not comparable" in done.output
    better = {"fvd": {"value": 5.0, "interval": [4.0, 6.0]},
              "flicker": {"value": 10.5, "interval": [9.5, 11.5]}}  # fmt: skip
    done = invoke(evaluate.app, "--compare", a, result(tmp_path / "b.json", scores=better))
    assert "B is better" in done.output and "overlap" in done.output
    no_clip = {"fvd": {**better["fvd"], "features": "x"}, "clipsim": better["flicker"]}
    told = invoke(evaluate.app, "--compare", a, result(tmp_path / "b.json", scores=no_clip)).output
    assert "clipsim: not measured in A" in told and "flicker: not measured in B" in told
    (tmp_path / "b.json").write_text("{}")
    assert invoke(evaluate.app, "--compare", a, tmp_path / "b.json").exit_code == 2
    assert "or --compare" in invoke(evaluate.app).output


def test_a_sample_is_enlarged_to_the_size_asked_for(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = tiny_run
    asked = ["--prompt", "x", "--output", tmp_path / "o.mp4", "--upscale", "bicubic"]
    done = invoke(sample.app, run, *asked, "--size", "172x96")
    assert done.exit_code == 0 and "enlarged to 172x96 by bicubic" in done.output, done.output
    with av.open(str(tmp_path / "o.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 8
    assert len(frames) == 10 and frames[0].shape == (96, 172, 3)
    assert np.stack(frames).std() > 1
    shutil.rmtree(tmp_path)
    none = invoke(sample.app, run, *asked[:-1], "no/weights", "--size", "172x96")
    assert none.exit_code == 2 and "`bicubic`" in none.output
