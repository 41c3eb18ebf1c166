"""The blocks of the space-time U-Net: spatial and temporal layers in pairs, Swap-CA at the end.

Features travel as [B*T, C, H, W] between layers, as in diffusers; T is passed along.
Names of submodules are those of diffusers' UNet3DConditionModel, plus `swap_attentions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.resnet import Downsample2D, ResnetBlock2D, TemporalConvLayer, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, cat, nn

from model.attention import Position, Role, Size, SwapAttention

TEMPORAL_DROPOUT = 0.1  # of the temporal convolutions, as ModelScope T2V trained them


@dataclass(frozen=True)
class SwapSite:
    """One Swap-CA: the layer of its block that it follows, and how it attends."""

    layer: int
    heads: int
    window: Size | None  # None: the whole clip
    roles: tuple[Role, ...]
    ffn_ratio: int
    position: Position
    shifted: bool


@dataclass(frozen=True)
class BlockShape:
    """What every layer of a block needs to know, whatever its place in the U-Net."""

    channels: int
    time_channels: int
    text_channels: int
    head_width: int
    norm_groups: int
    norm_eps: float
    attention: bool
    swaps: tuple[SwapSite, ...]


class SpaceTimeBlock(nn.Module):
    """Layers of resnet, temporal convolution and, with attention, spatial and temporal transformer.

    in_channels holds one entry per resnet (skips included); num_attentions of them are followed
    by a transformer pair.
    """

    def __init__(self, shape: BlockShape, in_channels: Sequence[int], num_attentions: int) -> None:
        super().__init__()
        C, groups = shape.channels, shape.norm_groups
        heads = C // shape.head_width
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width,
                out_channels=C,
                temb_channels=shape.time_channels,
                groups=groups,
                eps=shape.norm_eps,
            )
            for width in in_channels
        )
        self.temp_convs = nn.ModuleList(
            TemporalConvLayer(C, C, dropout=TEMPORAL_DROPOUT, norm_num_groups=groups)
            for _ in in_channels
        )
        self.has_attention = shape.attention
        if shape.attention:
            self.attentions = nn.ModuleList(
                Transformer2DModel(
                    heads,
                    shape.head_width,
                    in_channels=C,
                    cross_attention_dim=shape.text_channels,
                    norm_num_groups=groups,
                    use_linear_projection=True,
                )
                for _ in range(num_attentions)
            )
            self.temp_attentions = nn.ModuleList(
                TransformerTemporalModel(
                    heads, shape.head_width, in_channels=C, norm_num_groups=groups
                )
                for _ in range(num_attentions)
            )
        if shape.swaps:
            self.swap_attentions = nn.ModuleList(
                SwapAttention(
                    C,
                    heads=site.heads,
                    window=site.window,
                    roles=site.roles,
                    ffn_ratio=site.ffn_ratio,
                    norm_groups=groups,
                    position=site.position,
                    shifted=site.shifted,
                )
                for site in shape.swaps
            )
        self.swap_of_layer = {site.layer: n for n, site in enumerate(shape.swaps)}

    def layer(self, i: int, h: Tensor, time: Tensor, text: Tensor, num_frames: int) -> Tensor:
        """One layer of the block, and the Swap-CA that follows it if there is one.

        x is what the last spatial layer gave and y what the last temporal one gave.
        """
        x = self.resnets[i](h, time)
        y = self.temp_convs[i](x, num_frames=num_frames)
        if self.has_attention:
            x = self.attentions[i](y, encoder_hidden_states=text, return_dict=False)[0]
            y = self.temp_attentions[i](x, num_frames=num_frames, return_dict=False)[0]
        if i in self.swap_of_layer:
            y = self.swap_attentions[self.swap_of_layer[i]](x, y, num_frames)
        return y


class DownBlock(SpaceTimeBlock):
    """Layers, then a strided convolution; every layer's output is also a skip."""

    def __init__(
        self, shape: BlockShape, in_channels: int, num_layers: int, downsample: bool
    ) -> None:
        widths = [in_channels] + [shape.channels] * (num_layers - 1)
        super().__init__(shape, widths, num_layers)
        self.downsamplers = None
        if downsample:
            self.downsamplers = nn.ModuleList(
                [Downsample2D(shape.channels, use_conv=True, padding=1, name="op")]
            )

    def forward(
        self, h: Tensor, time: Tensor, text: Tensor, num_frames: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        skips: tuple[Tensor, ...] = ()
        for i in range(len(self.resnets)):
            h = self.layer(i, h, time, text, num_frames)
            skips += (h,)
        if self.downsamplers is not None:
            h = self.downsamplers[0](h)
            skips += (h,)
        return h, skips


class MidBlock(SpaceTimeBlock):
    """One attention layer, Swap-CA on its pair, and a closing resnet."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape, [shape.channels] * 2, num_attentions=1)

    def forward(self, h: Tensor, time: Tensor, text: Tensor, num_frames: int) -> Tensor:
        h = self.layer(0, h, time, text, num_frames)
        h = self.resnets[1](h, time)
        return self.temp_convs[1](h, num_frames=num_frames)


class UpBlock(SpaceTimeBlock):
    """Layers that each take one skip, then an upsampling to the size of the next skip."""

    def __init__(
        self,
        shape: BlockShape,
        in_channels: int,
        skip_channels: Sequence[int],
        upsample: bool,
    ) -> None:
        inputs = [in_channels] + [shape.channels] * (len(skip_channels) - 1)
        widths = [own + skip for own, skip in zip(inputs, skip_channels, strict=True)]
        super().__init__(shape, widths, len(widths))
        self.upsamplers = None
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample2D(shape.channels, use_conv=True)])

    def forward(
        self,
        h: Tensor,
        skips: tuple[Tensor, ...],
        time: Tensor,
        text: Tensor,
        num_frames: int,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """skips are taken from their end; size is the (H, W) of the next skip, None at the last."""
        for i in range(len(self.resnets)):
            h = self.layer(i, cat([h, skips[-1 - i]], dim=1), time, text, num_frames)
        if self.upsamplers is not None:
            h = self.upsamplers[0](h, size)
        return h
