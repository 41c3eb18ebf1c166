"""CLIPSIM: how well the frames of a clip fit its prompt, by CLIP.

Wu et al. 2021 (GODIVA, https://arxiv.org/abs/2104.14806): cosine of the text and of each frame,
mean over frames, then over prompts; reported raw (0.2 to 0.35), neither times 2.5 nor 100.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from curation.settings import ConfigError

MODEL = "ViT-B-32-quickgelu"  # OpenAI's weights were trained with QuickGELU
WEIGHTS = "openai"
Frames = Literal["crop", "squash"]


@dataclass(frozen=True)
class Clip:
    """A CLIP that gives unit vectors of texts and frames, and what says which one it is.

    label: the model's name, or `untrained-features` for random weights; printed with a number.
    sha256: of the file of the weights where they are one.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    transform: Callable[[Image.Image], Tensor]
    label: str
    sha256: str

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [P, D] of texts, cut at CLIP's 77 tokens."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return self.model.encode_text(tokens, normalize=True).cpu()

    @torch.no_grad()
    def of_frames(self, clip: Tensor) -> Tensor:
        """Unit vectors [T, D] of frames uint8 [T, H, W, 3]."""
        pixels = torch.stack([self.transform(Image.fromarray(frame.numpy())) for frame in clip])
        return self.model.encode_image(pixels.to(self.device), normalize=True).cpu()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def similarity(frames: Tensor, text: Tensor) -> float:
    """CLIPSIM of one clip: mean cosine of vectors of frames [T, D] and of a text [D]."""
    return float(torch.cosine_similarity(frames.double(), text.double()[None], dim=1).mean())


def load_clip(
    weights: str | None = WEIGHTS,
    model: str = MODEL,
    frames: Frames = "crop",
    device: torch.device | str = "cpu",
) -> Clip:
    """OpenAI's CLIP through open_clip.

    weights: `openai` to fetch (or find in the hub's cache), or a file of them; None: random ones.
    frames: crop is CLIP's own preprocessing (bicubic, antialiased, short side to 224, the middle
        kept), which hides 44% of a 16:9 frame; squash scales both sides to 224.

    Raises ConfigError for weights that cannot be had, and for a model without QuickGELU: open_clip
    only warns, and every number would be wrong.
    """
    import open_clip

    path = Path(weights) if weights and Path(weights).is_file() else None
    if path is None and weights not in (WEIGHTS, None):
        raise ConfigError(f"--clip {weights}: give a file of OpenAI's weights, or {WEIGHTS!r}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            made = open_clip.create_model(model, pretrained=weights, device=device)
        except Exception as error:  # the hub's client raises its own kinds, without a common base
            raise ConfigError(
                f"--clip {weights}: {model} cannot be loaded ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); give --clip FILE, or --clip none"
            ) from None
    check_quickgelu(made, model)
    made.eval().requires_grad_(False)
    transform = open_clip.image_transform(
        made.visual.image_size,
        is_train=False,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        resize_mode="shortest" if frames == "crop" else "squash",
        interpolation="bicubic",
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else f"tag {weights}"
    label = model if weights else "untrained-features"
    return Clip(made, open_clip.get_tokenizer(model), transform, label, digest)


def check_quickgelu(model: nn.Module, name: str) -> None:
    """ConfigError where a layer of a CLIP has another GELU than OpenAI's weights want."""
    if any(isinstance(module, nn.GELU) for module in model.modules()):
        raise ConfigError(f"{name} has GELU, OpenAI's weights want QuickGELU; use {MODEL}")
