"""vf-export: what it writes is the run's model to the bit, whole, and never over something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_media import TINY, small_dataset
from typer.testing import CliRunner

from model import SpaceTimeUNet, VideoFactoryPipeline
from model.diffusion import noise_schedule
from model.latents import SpaceToDepth, StableDiffusionLatents
from model.pipelines import Settings
from model.texts import OpenCLIPText, TinyText
from training import export, sample
from training.checkpoints.folders import latest
from training.checkpoints.saving import read_unet
from training.train import train as vf_train

# So different from the start, and with so little averaging, that EMA and raw weights differ.
SETTINGS = [*TINY, "learning_rate=3e-2", "ema_decay=0.5", "zero_terminal_snr=true", "guidance=2.5",
            "unet.swap_position=learned", "unet.swap_shift=odd",
            "unet.swap_window=[1, 2, 3]"]  # fmt: skip


def call(app: Any, *arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    data, out = small_dataset(folder / "data"), folder / "run"
    vf_train("tiny", [str(data)], out, set_=SETTINGS)
    return out


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run.parent / "exported"
    done = call(export.app, run, "--output", folder)
    assert done.exit_code == 0, done.output
    return folder


def forward(unet: SpaceTimeUNet) -> torch.Tensor:
    noise = torch.randn(2, 48, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet.eval()(noise, torch.tensor([3, 999]), text).sample


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_forward_is_the_same_to_the_bit(run: Path, tmp_path: Path, weights: str) -> None:
    done = call(export.app, run, "--output", tmp_path / "out", "--weights", weights)
    assert done.exit_code == 0, done.output
    pipe = VideoFactoryPipeline.from_pretrained(tmp_path / "out")
    checkpoint = latest(run)
    assert checkpoint is not None
    both = {name: forward(read_unet(checkpoint, name)) for name in ("ema", "raw")}
    assert torch.equal(forward(pipe.unet), both[weights])
    assert not torch.equal(both["ema"], both["raw"])


def test_a_seed_gives_the_clip_of_vf_sample(run: Path, exported: Path, tmp_path: Path) -> None:
    clips = []
    for n, source in enumerate((run, exported)):
        out = tmp_path / f"new/{n}.mp4"
        done = call(sample.app, source, "--prompt", "clip c1", "--output", out, "--seed", 5)
        assert done.exit_code == 0, done.output
        clips.append(out.read_bytes())
    assert clips[0] == clips[1]
    pipe = VideoFactoryPipeline.from_pretrained(exported)
    made = pipe("clip c1", generator=torch.Generator().manual_seed(5), progress=False)
    assert made.save(tmp_path / "pipe.mp4").read_bytes() == clips[0]
    other = pipe("clip c1", generator=torch.Generator().manual_seed(6), progress=False)
    assert not torch.equal(made.frames, other.frames)


def test_the_settings_and_the_card_travel(run: Path, exported: Path) -> None:
    pipe = VideoFactoryPipeline.from_pretrained(exported)
    assert pipe.settings == Settings(2, 16, 16, 8.0, 2, 2.5)
    assert pipe.schedule.alphas_cumprod[-1] == 0
    told = json.loads((exported / "export.json").read_text())
    assert told["card"] == json.loads((run / "card.json").read_text())
    assert (told["checkpoint"], told["weights"]) == ("step-00000004", "ema")
    assert {path.name for path in exported.iterdir()} == {
        *("model_index.json", "unet", "scheduler", "codec", "text", "export.json")
    }


def test_only_an_earlier_export_is_replaced(run: Path, exported: Path, tmp_path: Path) -> None:
    assert call(export.app, run, "--output", exported, "--weights", "raw").exit_code == 0
    assert json.loads((exported / "export.json").read_text())["weights"] == "raw"
    assert call(export.app, run, "--output", exported).exit_code == 0
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".tmp-")]
    (tmp_path / "mine").write_text("mine")
    for foreign in (tmp_path, tmp_path / "mine", run):
        done = call(export.app, run, "--output", foreign)
        assert done.exit_code == 2 and "is no earlier export" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_stop_while_writing_leaves_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.checkpoints.folders.sync", stop)
    assert call(export.app, run, "--output", tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told(run: Path, tmp_path: Path) -> None:
    none = call(export.app, tmp_path / "none", "--output", tmp_path / "x")
    assert none.exit_code == 2 and "holds no checkpoint" in none.stderr
    other = call(export.app, run, "--output", tmp_path / "x", "--weights", "best")
    assert other.exit_code == 2 and "choose ema or raw" in other.stderr
    with pytest.raises(FileNotFoundError, match="give the --output of vf-export"):
        VideoFactoryPipeline.from_pretrained(run)


def test_a_text_tower_that_is_drawn_otherwise_is_refused(exported: Path) -> None:
    path = exported / "text" / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "seed": 1}))
    with pytest.raises(ValueError, match="draws other random weights"):
        VideoFactoryPipeline.from_pretrained(exported)
    path.write_text(before)


def test_large_encoders_are_saved_as_where_they_lie(tmp_path: Path) -> None:
    unet = SpaceTimeUNet.from_preset("tiny", block_out_channels=(8, 8), attention_head_dim=4,
                                     norm_num_groups=4, in_channels=4, out_channels=4,
                                     cross_attention_dim=512)  # fmt: skip
    (tmp_path / "weights.bin").touch()
    text = OpenCLIPText(tmp_path / "weights.bin", model="ViT-B-32")
    pipe = VideoFactoryPipeline(unet, StableDiffusionLatents("some/vae"), text, noise_schedule())
    pipe.save_pretrained(tmp_path / "out")
    again = VideoFactoryPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(again.codec, StableDiffusionLatents)
    assert again.codec.path_or_id == "some/vae"
    assert isinstance(again.text, OpenCLIPText)
    assert (again.text.weights, again.text.model) == (str(tmp_path / "weights.bin"), "ViT-B-32")
    other = VideoFactoryPipeline.from_pretrained(
        tmp_path / "out", codec=StableDiffusionLatents("b"), text=text
    )
    assert other.text is text and other.codec.path_or_id == "b"  # type: ignore[attr-defined]


def test_only_codecs_of_ours_can_be_saved(tmp_path: Path) -> None:
    class Mine(SpaceToDepth):
        pass

    unet = SpaceTimeUNet.from_preset("tiny", block_out_channels=(16, 16))
    pipe = VideoFactoryPipeline(unet, Mine(), TinyText(), noise_schedule())
    with pytest.raises(ValueError, match="Mine cannot be saved"):
        pipe.save_pretrained(tmp_path / "out")
