"""Where scalars and samples go besides RUN: TensorBoard, trackio, Weights & Biases, or nowhere.

Each class has the same three calls: scalars, clips and close. trackio and wandb are extras, which
are imported when a run asks for them; their runs are gone on with when this one is.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from torch import Tensor

from curation.settings import ConfigError
from training.checkpoints.folders import write_whole
from training.config import Config

PROJECT = "videofactory"


class TensorBoard:
    """RUN/tb: scalars, and samples as moving pictures."""

    def __init__(self, config: Config, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after its last checkpoint is hidden.
        self.writer = SummaryWriter(str(run / "tb"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def clips(self, step: int, prompts: list[str], clips: Tensor, fps: float) -> None:
        """Clips uint8 [B, T, H, W, 3] as animated GIFs: add_video would want moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for n, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
            picture = Summary.Image(
                height=clip.shape[1],
                width=clip.shape[2],
                colorspace=3,
                encoded_image_string=gif(clip, fps),
            )
            value = Summary.Value(tag=f"samples/{n} {prompt[:40]}", image=picture)
            self.writer._get_file_writer().add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A run of trackio's project videofactory, named as RUN's folder; `trackio show` shows it."""

    def __init__(self, config: Config, run: Path, step: int) -> None:
        import trackio

        self.video = trackio.Video
        self.run = trackio.init(
            project=PROJECT,
            name=lasting_id(run, "trackio"),
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            # Figures of the machine would need nvidia-ml-py; metrics.jsonl has the memory.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def clips(self, step: int, prompts: list[str], clips: Tensor, fps: float) -> None:
        """Clips uint8 [B, T, H, W, 3] as animated GIFs, which trackio copies."""
        with TemporaryDirectory() as folder:
            files = write_gifs(Path(folder), clips, fps)
            told = {
                f"samples/{n}": self.video(str(file), caption=prompt)
                for n, (prompt, file) in enumerate(zip(prompts, files, strict=True))
            }
            self.run.log(told, step=step)

    def close(self) -> None:
        self.run.finish()


class WeightsAndBiases:
    """A run of W&B's project videofactory (or WANDB_PROJECT); WANDB_MODE=offline keeps it here."""

    def __init__(self, config: Config, run: Path, step: int) -> None:
        import wandb

        self.video = wandb.Video
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=lasting_id(run, "wandb"),
            name=run.absolute().name,
            dir=str(run),
            config=config.model_dump(mode="json"),
            resume="allow",
        )
        # Its own count of steps never goes back, which a resumed run does.
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def clips(self, step: int, prompts: list[str], clips: Tensor, fps: float) -> None:
        """Clips uint8 [B, T, H, W, 3] as animated GIFs, which wandb copies."""
        with TemporaryDirectory() as folder:
            files = write_gifs(Path(folder), clips, fps)
            told = {
                f"samples/{n}": self.video(str(file), caption=prompt, format="gif")
                for n, (prompt, file) in enumerate(zip(prompts, files, strict=True))
            }
            self.run.log({"step": step, **told})

    def close(self) -> None:
        self.run.finish()


class Nowhere:
    """Nothing beside RUN's own files."""

    def __init__(self, config: Config, run: Path, step: int) -> None: ...

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def clips(self, step: int, prompts: list[str], clips: Tensor, fps: float) -> None: ...

    def close(self) -> None: ...


Logger = TensorBoard | Trackio | WeightsAndBiases | Nowhere
LOGGERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "none": Nowhere,
}


def check_logger(config: Config) -> None:
    """Refuse a logger whose package is not there, before any work."""
    if config.logger in ("trackio", "wandb") and find_spec(config.logger) is None:
        raise ConfigError(
            f"logger={config.logger} needs the package {config.logger}: "
            f"pip install {config.logger}, or use logger=tensorboard or none"
        )


def make_logger(config: Config, run: Path, step: int) -> Logger:
    """The logger that a config names, for a run that begins after `step`."""
    return LOGGERS[config.logger](config, run, step)


def lasting_id(run: Path, logger: str) -> str:
    """The id of a run with a logger, made once: RUN/logger.json keeps it."""
    path = run / "logger.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if logger not in known:
        # Folders of one name are common, and ids are for all of a project's runs.
        known[logger] = f"{run.absolute().name}-{secrets.token_hex(4)}"
        write_whole(path, json.dumps(known, indent=1))
    return known[logger]


def write_gifs(folder: Path, clips: Tensor, fps: float) -> list[Path]:
    """Clips uint8 [B, T, H, W, 3] as files."""
    files = [folder / f"{n}.gif" for n in range(len(clips))]
    for file, clip in zip(files, clips, strict=True):
        file.write_bytes(gif(clip, fps))
    return files


def gif(clip: Tensor, fps: float) -> bytes:
    """An animated GIF of a clip uint8 [T, H, W, 3]."""
    frames = [Image.fromarray(frame) for frame in clip.numpy()]
    sink = io.BytesIO()
    frames[0].save(
        sink, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0
    )
    return sink.getvalue()
