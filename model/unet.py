"""python -m model.unet [--memory] [PRESET ...]: parameters of each preset by part, or what training
them takes and what fits on which GPU; nothing is allocated.

The space-time U-Net: ModelScope T2V's structure and key names (diffusers' UNet3DConditionModel)
plus Swap-CA. B clips, C latent channels, T frames, H x W latent pixels, L text tokens.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from torch import Tensor, nn

from model.blocks import DownBlock, MidBlock, UpBlock
from model.configs import PRESETS, block_shapes, check_config, check_inputs

if TYPE_CHECKING:
    from model.starts import StartReport

PerLevel = tuple[int, ...] | list[int]
PARTS = ("spatial", "temporal", "swap")


class SpaceTimeUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts noise or velocity of video latents from a noisy clip, its timestep and its text.

    The keys up to `attention_head_dim` are those of diffusers' UNet3DConditionModel.

    sample_size: (H, W) of the latents the model is meant for; any size is accepted.
    attention_head_dim: channels per head (in diffusers' 2D U-Net the same word counts heads).
    swap_placement: Swap-CA once at the end of every block, or after every layer.
    swap_window: at most so many (T, H, W) latent pixels per window, or one such triple per
        level; balanced and clipped to the clip (`fit_window`). The default is ours: at 344x192 it
        pads one column in 44, where 8 pixels a side pad 5 in 48.
    swap_heads: heads, or heads per level; None gives heads of `attention_head_dim` channels.
    swap_ffn_ratio: hidden width of Swap-CA's FFN over its channels; 0 for none. 4 is
        that of diffusers' transformer blocks.
    swap_direction: who asks. `alternate`: spatial features at even sites (down, mid, up in
        order), temporal ones at odd sites (the paper's); `both`: two branches at each site.
    swap_attention: 3D windows (the paper's), `global`, windowed `self`-attention of the
        temporal stream, or `off`; for ablations.
    swap_position: what tells the tokens of a window where and when they are: `none` (frames in
        another order then give the same in that order), `rotary` (axial, on q and k; heads of an
        even width of 6 or more) or `learned` (an embedding for each place of a window; not with
        `global`). The default is that of earlier checkpoints.
    swap_shift: `odd` cuts the windows of odd sites half a window further back, so that what one
        site cuts apart the next holds together; windows at the borders are smaller. `none`: all
        sites cut at the same places, T = 16 in windows of 8 between frames 8 and 9.
    fps_conditioning: adds an embedding of the frame rate to that of time, zero at the start so
        that the model begins equal to its source; `forward` then needs fps.
    low_res_channels: of the low-resolution latents that an upsampler sees beside the noisy ones;
        adds an embedding of their noise level likewise. 0: no upsampler (`upsampling`).

    Raises ValueError for a config that names an unknown choice or does not fit together.
    """

    _supports_gradient_checkpointing = True
    _gradient_checkpointing_func: Any
    _skip_layerwise_casting_patterns = [  # type: ignore[assignment]  # noqa: RUF012
        *("norm", "time_embedding", "fps_embedding", "level_embedding")
    ]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock3D"] * 3, "DownBlock3D"),
        up_block_types: tuple[str, ...] = ("UpBlock3D", *["CrossAttnUpBlock3D"] * 3),
        block_out_channels: PerLevel = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        swap_placement: Literal["block", "layer"] = "block",
        swap_window: tuple[int, int, int] | tuple[tuple[int, int, int], ...] = (8, 6, 11),
        swap_heads: int | PerLevel | None = None,
        swap_ffn_ratio: int = 4,
        swap_direction: Literal["alternate", "spatial_query", "temporal_query", "both"] = (
            "alternate"
        ),
        swap_attention: Literal["window", "global", "self", "off"] = "window",
        swap_position: Literal["none", "rotary", "learned"] = "none",
        swap_shift: Literal["none", "odd"] = "none",
        fps_conditioning: bool = False,
        low_res_channels: int = 0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        first, time_channels = block_out_channels[0], 4 * block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels + low_res_channels, first, kernel_size=3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, time_channels)
        if fps_conditioning:
            self.fps_embedding = silent_embedding(first, time_channels)
        if low_res_channels:
            self.level_embedding = silent_embedding(first, time_channels)
        self.transformer_in = TransformerTemporalModel(
            num_attention_heads=8,  # as ModelScope T2V, whatever the width
            attention_head_dim=attention_head_dim,
            in_channels=first,
            norm_num_groups=norm_num_groups,
        )
        self._build_blocks(list(block_out_channels), layers_per_block)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first, eps=norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, out_channels, kernel_size=3, padding=1)
        self.gradient_checkpointing = False

    def _build_blocks(self, widths: list[int], layers: int) -> None:
        levels = len(widths)
        shapes = block_shapes(self.config)
        self.down_blocks = nn.ModuleList(
            DownBlock(shapes[n], widths[max(n - 1, 0)], layers, downsample=n < levels - 1)
            for n in range(levels)
        )
        self.mid_block = MidBlock(shapes[levels])
        self.up_blocks = nn.ModuleList()
        skips = [widths[0]]  # conv_in, then each layer and downsampler, in the order they are made
        for n, width in enumerate(widths):
            skips += [width] * (layers + (n < levels - 1))
        coming = widths[-1]
        for n, width in enumerate(reversed(widths)):
            taken = [skips.pop() for _ in range(layers + 1)]
            block = UpBlock(shapes[levels + 1 + n], coming, taken, upsample=n < levels - 1)
            self.up_blocks.append(block)
            coming = width
        assert not skips

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None
    ) -> None:
        # Here alone: diffusers would set it on the layers too, which would then be run thrice.
        self.gradient_checkpointing = enable
        self._gradient_checkpointing_func = gradient_checkpointing_func

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """Call a block; with activation checkpointing, keep its inputs alone for the backward."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        fps: Tensor | float | None = None,
        low_res: Tensor | None = None,
        noise_level: Tensor | float | int | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """One prediction for a batch of noisy clips.

        sample: [B, C, T, H, W], T >= 1.
        timestep: in [0, 1000), one for all or [B].
        encoder_hidden_states: text states [B, L, cross_attention_dim]; all L are attended to.
        fps: displayed frames per second, one for all or [B]; 0 for still images. Only with
            `fps_conditioning`.
        low_res, noise_level: [B, low_res_channels, T, H, W] and the step of the schedule that its
            noise is of, one for all or [B]. Only with `low_res_channels`.
        Returns an object whose `sample` has the shape of the input (`out_channels` channels),
        or with return_dict=False a tuple of that.
        """
        check_inputs(self.config, sample, encoder_hidden_states, fps, low_res, noise_level)
        B, _, T, _, _ = sample.shape
        time = self._embed_time(timestep, fps, noise_level, sample).repeat_interleave(T, dim=0)
        text = encoder_hidden_states.repeat_interleave(T, dim=0)

        seen = sample if low_res is None else torch.cat([sample, low_res.to(sample)], dim=1)
        h = self.conv_in(seen.transpose(1, 2).flatten(0, 1))
        h = self.transformer_in(h, num_frames=T, return_dict=False)[0]
        skips = [h]
        for down in self.down_blocks:
            h, made = self.run_block(down, h, time, text, T)
            skips += made
        h = self.run_block(self.mid_block, h, time, text, T)
        count = self.config["layers_per_block"] + 1
        for up in self.up_blocks:
            taken, skips = tuple(skips[-count:]), skips[:-count]
            # Odd sizes: what comes next is as large as the skip it meets, not twice as large.
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            h = self.run_block(up, h, taken, time, text, T, size)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        out = h.unflatten(0, (B, T)).transpose(1, 2)
        return UNet3DConditionOutput(sample=out) if return_dict else (out,)

    def _embed_time(
        self,
        timestep: Tensor | float | int,
        fps: Tensor | float | None,
        level: Tensor | float | int | None,
        sample: Tensor,
    ) -> Tensor:
        def wave(value: Tensor | float | int) -> Tensor:
            each = torch.as_tensor(value, device=sample.device).expand(sample.shape[0])
            return self.time_proj(each).to(sample.dtype)

        time = self.time_embedding(wave(timestep))
        if fps is not None:
            time = time + self.fps_embedding(wave(fps))
        return time if level is None else time + self.level_embedding(wave(level))

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As diffusers' own, without its advice to install accelerate."""
        return super().from_pretrained(*args, **{"low_cpu_mem_usage": False, **options})

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "SpaceTimeUNet":
        """A model with random weights: a row of `PRESETS`, some of its keys changed."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_modelscope(
        cls, path_or_id: str | Path, **changes: Any
    ) -> "tuple[SpaceTimeUNet, StartReport]":
        """Start as ModelScope T2V in diffusers' format; see `starts.from_modelscope`."""
        # Here and below: starts builds a SpaceTimeUNet, so it is imported when it is called.
        from model.starts import from_modelscope

        return from_modelscope(path_or_id, **changes)

    @classmethod
    def from_stable_diffusion(
        cls, path_or_id: str | Path, **changes: Any
    ) -> "tuple[SpaceTimeUNet, StartReport]":
        """Start as Stable Diffusion 2.x on each frame; see `starts.from_stable_diffusion`."""
        from model.starts import from_stable_diffusion

        return from_stable_diffusion(path_or_id, **changes)


def silent_embedding(waves: int, channels: int) -> TimestepEmbedding:
    """An embedding that says nothing until it is trained."""
    embedding = TimestepEmbedding(waves, channels)
    nn.init.zeros_(embedding.linear_2.weight)
    nn.init.zeros_(embedding.linear_2.bias)
    return embedding


def part_of(key: str) -> str:
    """Which part of the model a parameter belongs to: spatial, temporal or Swap-CA."""
    if ".swap_attentions." in key:
        return "swap"
    temporal = (".temp_convs.", ".temp_attentions.", "transformer_in.", "fps_embedding.")
    return "temporal" if any(name in f".{key}" for name in temporal) else "spatial"


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part, and their total."""
    counts = dict.fromkeys(PARTS, 0)
    for key, parameter in model.named_parameters():
        counts[part_of(key)] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def main(names: list[str]) -> None:
    """Print the table of parameters, or of memory; the models are built without memory."""
    if "--memory" in names:
        from model.memory import print_table  # it builds a SpaceTimeUNet

        print_table([name for name in names if name != "--memory"] or ["small", "videofactory"])
        return
    print(f"{'preset':28}{'spatial':>10}{'temporal':>10}{'swap':>10}{'total':>10}   millions")
    for name in names or list(PRESETS):
        for placement in ("block", "layer"):
            with torch.device("meta"):
                model = SpaceTimeUNet.from_preset(name, swap_placement=placement)
            counts = count_parameters(model)
            row = "".join(f"{count / 1e6:10.1f}" for count in counts.values())
            print(f"{name + ', Swap-CA per ' + placement:28}{row}")
    print("Other papers' tables give VideoFactory 2.0 B and ModelScope T2V 1.7 B, the latter with")
    print("its text encoder (0.34 B) and VAE (0.08 B), which are not counted above.")


if __name__ == "__main__":
    main(sys.argv[1:])
