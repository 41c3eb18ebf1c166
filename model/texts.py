"""Prompts to text states [B, 77, D]: OpenCLIP's text tower, and a tiny random one for CPUs.

Both pad to 77 tokens with zeros and mask nothing, as Stable Diffusion 2 and ModelScope T2V do:
the padding's states carry the end of the prompt, and the model attends to all 77.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.weights import how_to_get, variant_of

CONTEXT = 77


class TextEncoder(Protocol):
    """What training and sampling need of a text encoder: D and one direction."""

    @property
    def width(self) -> int: ...

    def encode(self, prompts: list[str]) -> Tensor:
        """Text states [len(prompts), 77, D]; "" gives the empty prompt's."""


class OpenCLIPText:
    """OpenCLIP's text tower up to the layer before the last, then its final LayerNorm.

    That is what Stable Diffusion 2 and ModelScope T2V saw: ViT-H/14, 23 of 24 layers, 1024
    wide. Loaded on first use.

    weights: a file of OpenCLIP's (open_clip_model.safetensors or .bin), or the tag of one for
        open_clip to fetch.
    model: the name of an open_clip architecture; `width` is the width of its text tower.

    Raises FileNotFoundError on first use where the weights are not to be had.
    """

    def __init__(
        self,
        weights: str | Path = "laion2b_s32b_b79k",
        *,
        model: str = "ViT-H-14",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = str(weights)
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self._tower: Any = None

    @property
    def width(self) -> int:
        """D, read from the architecture: no weights are needed for it."""
        import open_clip

        config = open_clip.get_model_config(self.model)
        if config is None:
            raise ValueError(f"open_clip has no model {self.model!r}; ViT-H-14 is SD 2's.")
        return int(config["text_cfg"]["width"])

    @property
    def tower(self) -> Any:
        """open_clip's model without its image half and without its last text layer, frozen."""
        if self._tower is None:
            self._tower = self._load()
        return self._tower

    def _load(self) -> Any:
        import open_clip

        known = open_clip.list_pretrained_tags_by_model(self.model)
        if self.weights not in known and not Path(self.weights).is_file():
            raise FileNotFoundError(self._missing())
        try:
            tower = open_clip.create_model(self.model, pretrained=self.weights)
        except (OSError, RuntimeError) as error:
            if Path(self.weights).is_file():
                raise  # the file is there and does not fit: open_clip says how
            raise FileNotFoundError(self._missing()) from error
        tower.visual = None
        tower.transformer.resblocks = tower.transformer.resblocks[:-1]
        return tower.to(self.device, self.dtype).eval().requires_grad_(False)

    def _missing(self) -> str:
        return (
            f"no OpenCLIP weights at {self.weights!r} for {self.model}, and no network to fetch "
            f"them. {how_to_get('text')}, then give DIR/open_clip_model.safetensors, or the folder "
            "text_encoder of Stable Diffusion 2 or ModelScope T2V; or use TinyText, which needs "
            "none."
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        tower = self.tower
        x = tower.token_embedding(tokenize(prompts).to(self.device)).to(self.dtype)
        x = x + tower.positional_embedding.to(self.dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask)
        return tower.ln_final(x)


class TransformersText:
    """The same states from the folder `text_encoder` of Stable Diffusion 2 or ModelScope T2V.

    transformers' CLIPTextModel with OpenCLIP's weights, the last layer left out already: its
    last hidden state is after the final LayerNorm. Loaded on first use.

    Raises FileNotFoundError on first use where the folder has no weights, ValueError where it
    holds another kind of model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder = str(folder)
        self.device = torch.device(device)
        self.dtype = dtype
        self._tower: Any = None

    @property
    def width(self) -> int:
        """D, read from the folder's config."""
        config = json.loads((Path(self.folder) / "config.json").read_text())
        if config.get("model_type") != "clip_text_model":
            raise ValueError(
                f"{self.folder} holds a {config.get('model_type')}, not a clip_text_model: give "
                "the text_encoder of Stable Diffusion 2 or ModelScope T2V."
            )
        return int(config["hidden_size"])

    @property
    def tower(self) -> Any:
        """transformers' CLIPTextModel, frozen."""
        if self._tower is None:
            from transformers import CLIPTextModel

            _ = self.width  # for its error
            try:
                tower: Any = CLIPTextModel.from_pretrained(
                    self.folder, variant=variant_of(Path(self.folder))
                )
            except OSError as error:
                raise FileNotFoundError(f"no text encoder in {self.folder}: {error}") from error
            self._tower = tower.to(self.device, self.dtype).eval().requires_grad_(False)
        return self._tower

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        return self.tower(tokenize(prompts).to(self.device)).last_hidden_state


class TinyText:
    """A small text tower with RANDOM frozen weights and the real tokenizer; it knows no language.

    Different prompts get different states, the same on every machine for the same seed, and
    that is enough for a small model to learn what they stand for. For CPUs and tests; the
    preset tiny is made for its 64 channels. Ours: two layers, so
    that words mix more than once; any seed will do.
    """

    def __init__(self, width: int = 64, *, layers: int = 2, heads: int = 4, seed: int = 0) -> None:
        from open_clip.transformer import TextTransformer

        self.width, self.layers, self.heads, self.seed = width, layers, heads, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = TextTransformer(
                context_length=CONTEXT,
                width=width,
                heads=heads,
                layers=layers,
                pool_type="none",
                proj_type="none",
            )
        self.tower = tower.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """As `TextEncoder.encode`."""
        device = self.tower.positional_embedding.device
        return self.tower(tokenize(prompts).to(device))

    def fingerprint(self) -> str:
        """A hash of the weights: whether another machine drew the same ones from the seed."""
        found = hashlib.sha256()
        for parameter in self.tower.parameters():
            found.update(parameter.cpu().numpy().tobytes())
        return found.hexdigest()[:16]


@cache
def tokenizer() -> Any:
    """OpenCLIP's own tokenizer; its vocabulary comes with open_clip, so no network is needed."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT)


def tokenize(prompts: list[str]) -> Tensor:
    """Token ids [len(prompts), 77], longer prompts cut before the end token."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r}: give a list of prompts, even of one.")
    return tokenizer()(prompts)
