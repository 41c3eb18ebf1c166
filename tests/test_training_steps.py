"""One optimiser step: accumulation, EMA, schedules, what each key of a config changes."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_media import TINY, clip, mp4, small_dataset, write_dataset

from curation.settings import ConfigError
from training.checkpoints import folders
from training.checkpoints.folders import code_version
from training.config import PRESETS, Config, load_config
from training.data.batches import Batches, Sample
from training.data.rows import open_rows
from training.data.shapes import shapes_of
from training.learning.losses import Objective, held_out_losses, micro_batches
from training.learning.starts import (
    DTYPES,
    choose_trained,
    device_of,
    make_codec,
    make_start,
    make_text,
    schedule_of,
)
from training.learning.steps import DivergedError, State, learning_rate, make_state, train_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data") / "a")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on tensors this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class OneByOne:
    """The tiny text tower, a prompt at a time: fp32 states depend on what they are batched with."""

    def __init__(self) -> None:
        self.tower = make_text(load_config("tiny", []), torch.device("cpu"))
        self.width = self.tower.width

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.cat([self.tower.encode([prompt]) for prompt in prompts])


@cache
def text() -> OneByOne:
    return OneByOne()


def config(*overrides: str) -> Config:
    return load_config("tiny", [*TINY, *overrides])


def fresh(config: Config) -> tuple[State, Objective]:
    start = make_start(config, None)
    choose_trained(start.unet, config)
    device = device_of(config)
    dtype = DTYPES[config.precision]
    schedule = schedule_of(start.noise)
    objective = Objective(config, schedule, make_codec(config, device), text(), device, dtype)
    return make_state(start.unet, config, device), objective


def batches(config: Config, data: Path, count: int) -> list[list[Sample]]:
    held = config.held_out
    rows = open_rows(str(data), "a", 1, shapes_of(config), config.shuffle_memory_gb * 1e9, held)
    return [b.samples for b in itertools.islice(Batches([rows], config).start_at(0), count)]


def trained(config: Config, data: Path, count: int = 3) -> tuple[State, list[float]]:
    """A few steps from the start: the state and the losses."""
    state, objective = fresh(config)
    every = [train_step(state, objective, each, config)[0] for each in batches(config, data, count)]
    return state, [loss.mean().item() for loss in every]


def gradients(state: State) -> Tensor:
    return torch.cat([p.grad.flatten() for p in state.unet.parameters() if p.grad is not None])


def weights(state: State) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.unet.named_parameters()}


@pytest.mark.parametrize("size", [1, 3])
def test_accumulation_is_the_big_batch(data: Path, size: int) -> None:
    base = ("precision=float64", "batch_size=4")
    whole, whole_losses = trained(config(*base), data, 1)
    parts, part_losses = trained(config(*base, f"micro_batch_size={size}"), data, 1)
    assert torch.equal(gradients(whole) != 0, gradients(parts) != 0)
    difference = (gradients(whole) - gradients(parts)).norm() / gradients(whole).norm()
    assert difference < 1e-9
    assert part_losses == pytest.approx(whole_losses, rel=1e-12)


def test_micro_batches_hold_one_number_of_frames() -> None:
    def sample(frames: int) -> Sample:
        return Sample("a", str(frames), 0, "", torch.zeros(frames, 4, 4, 3), None)  # type: ignore[arg-type]

    settings = config("num_frames=8", "height=4", "width=4", "micro_batch_size=2")
    parts = list(micro_batches([sample(n) for n in (8, 1, 8, 8, 1)], settings, 4))
    assert [[len(s.raw) for s in part] for part in parts] == [[8, 8], [8], [1, 1]]


def test_images_and_videos_train_together(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "m", [clip("image", mp4(1), 1), clip("video", mp4(6), 6)])
    _, losses = trained(config("held_out=0"), folder, 2)
    assert len(losses) == 2


# Keys that change what is trained, each with the smallest change of it.
CHANGES = [
    *("unet.swap_ffn_ratio=2", "trainable=temporal_and_swap", "num_frames=3", "height=20"),
    *("width=20", "stride=2", "held_out=0.5", "prediction_type=epsilon"),
    *("zero_terminal_snr=true", "min_snr_gamma=0.5", "caption_dropout=1", "dropout=0.3"),
    *("seed=1", "batch_size=3", "learning_rate=3e-3", "schedule=cosine", "warmup_steps=2"),
    *("weight_decay=0.5", "clip_norm=0.01", "precision=bf16", "shuffle_memory_gb=1e-9"),
]


@pytest.fixture(scope="module")
def base_weights(data: Path) -> dict[str, Tensor]:
    return weights(trained(config(), data)[0])


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_changes_what_is_trained(
    data: Path, base_weights: dict[str, Tensor], change: str
) -> None:
    other = weights(trained(config(change), data)[0])
    assert any(
        base_weights[name].shape != other[name].shape
        or not torch.equal(base_weights[name], other[name])
        for name in other
    )


def test_fps_is_the_rate_of_frames(data: Path) -> None:
    slow, fast = (batches(config("stride=null", f"fps={fps}"), data, 1) for fps in (4, 8))
    assert any(not torch.equal(a.raw, b.raw) for a, b in zip(slow[0], fast[0], strict=True))


@pytest.mark.parametrize(
    "change", ["micro_batch_size=2", "activation_checkpointing=true", "loader_threads=2",
               "prefetch=3"]
)  # fmt: skip
def test_the_key_changes_nothing_that_is_trained(
    data: Path, base_weights: dict[str, Tensor], change: str
) -> None:
    other = weights(trained(config(change), data)[0])
    assert all(torch.equal(base_weights[name], other[name]) for name in other)


def test_activation_checkpointing_is_on_where_asked(data: Path) -> None:
    for asked in (True, False):
        state, _ = fresh(config(f"activation_checkpointing={asked}"))
        assert state.unet.gradient_checkpointing is asked


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(data: Path) -> None:
    settings = config("precision=bf16")
    state, objective = fresh(settings)
    seen = []
    state.unet.conv_in.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    train_step(state, objective, batches(settings, data, 1)[0], settings)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in state.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [("swap", {"swap"}), ("temporal_and_swap", {"swap", "temporal"}),
     ("all", {"swap", "temporal", "spatial"})],
)  # fmt: skip
def test_only_the_chosen_parts_are_trained(data: Path, trainable: str, parts: set[str]) -> None:
    from model.unet import part_of

    settings = config(f"trainable={trainable}")
    before = weights(fresh(settings)[0])
    state, _ = trained(settings, data)
    moved = {part_of(n) for n, w in weights(state).items() if not torch.equal(w, before[n])}
    assert moved == parts
    assert {part_of(name) for name in state.ema.averages} == parts


def test_dropped_captions_see_the_states_of_the_empty_prompt(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share, prompt in ((0.0, None), (1.0, "")):
        settings = config(f"caption_dropout={share}")
        state, objective = fresh(settings)
        samples = batches(settings, data, 1)[0]
        seen: list[Tensor] = []
        hook = state.unet.register_forward_pre_hook(lambda _m, args, s=seen: s.append(args[2]))
        objective.losses(state.unet, samples)
        hook.remove()
        prompts = [s.caption if prompt is None else prompt for s in samples]
        assert torch.equal(seen[0], text().encode(prompts))
        assert len(set(prompts)) == (1 if prompt == "" else 2)


def test_the_share_of_dropped_captions() -> None:
    from training.data.orders import draw

    share = config("caption_dropout=0.25").caption_dropout
    dropped = sum(draw(0, "a", 0, str(n)).caption < share for n in range(4000)) / 4000
    assert abs(dropped - 0.25) < 0.021  # three standard errors


def test_ema_follows_its_formula(data: Path) -> None:
    settings = config("ema_decay=0.3")
    state, objective = fresh(settings)
    name = "conv_out.bias"
    average = weights(state)[name]
    for step, samples in enumerate(batches(settings, data, 4)):
        train_step(state, objective, samples, settings)
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights(state)[name]
        assert torch.allclose(state.ema.averages[name], average, atol=1e-7)
    raw, average = weights(state)[name], state.ema.averages[name].clone()
    with state.ema.swapped(state.unet):
        assert torch.equal(weights(state)[name], average)
    assert torch.equal(weights(state)[name], raw) and not torch.equal(raw, average)
    assert torch.equal(state.ema.averages[name], average)


def test_learning_rates() -> None:
    flat = config("learning_rate=1", "warmup_steps=4", "max_steps=12")
    assert [learning_rate(flat, n) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = config("learning_rate=1", "warmup_steps=4", "max_steps=12", "schedule=cosine")
    assert learning_rate(cosine, 4) == 1 and learning_rate(cosine, 8) == pytest.approx(0.5)
    assert learning_rate(cosine, 11) < 0.05 and learning_rate(cosine, 12) == pytest.approx(0)


def test_a_loss_that_is_no_number_changes_nothing(data: Path) -> None:
    settings = config()
    state, objective = fresh(settings)
    with torch.no_grad():
        state.unet.conv_out.bias[0] = float("nan")
    before = weights(state)
    averages = {name: average.clone() for name, average in state.ema.averages.items()}
    samples = batches(settings, data, 1)[0]
    with pytest.raises(DivergedError, match=f"step 1: loss nan.*clips {samples[0].clip_id}"):
        train_step(state, objective, samples, settings)
    assert state.step == 0
    after = weights(state)
    assert all(torch.equal(after[n], w) for n, w in before.items() if n != "conv_out.bias")
    assert all(torch.equal(state.ema.averages[n], average) for n, average in averages.items())


def test_held_out_loss_is_the_same_whenever_it_is_asked(data: Path) -> None:
    settings = config()
    state, objective = fresh(settings)
    samples = batches(settings, data, 1)[0]
    torch.manual_seed(1)
    first = held_out_losses(objective, state.unet, samples, 3)
    torch.manual_seed(2)
    assert first == held_out_losses(objective, state.unet, samples, 3)
    assert len(first["bins"]) == 3 and set(first["datasets"]) == {"a"}
    assert first["all"] == pytest.approx(sum(first["bins"]) / 3)
    assert state.unet.training


def test_timesteps_fill_their_bins() -> None:
    _, objective = fresh(config())
    assert objective.timesteps([0, 0.5, 0.9999999]).tolist() == [0, 500, 999]


def test_loss_falls_on_one_clip(data: Path) -> None:
    """The same noise, before and after: 40 steps on two clips."""
    settings = config("learning_rate=3e-3", "caption_dropout=0")
    state, objective = fresh(settings)
    samples = batches(settings, data, 1)[0]
    before = held_out_losses(objective, state.unet, samples, 2)["all"]
    for _ in range(40):
        train_step(state, objective, samples, settings)
    assert held_out_losses(objective, state.unet, samples, 2)["all"] < 0.8 * before


def test_the_code_that_a_loss_depends_on_is_found() -> None:
    assert code_version() != hashlib.sha256(b"").hexdigest()[:12]
    root = Path(folders.__file__).parents[2]
    assert (root / "model" / "unet.py").is_file() and (root / "training" / "train.py").is_file()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset: str) -> None:
    assert load_config(preset, []).model == preset


def test_the_papers_numbers() -> None:
    paper = load_config("videofactory", [])
    assert (paper.batch_size, paper.max_steps, paper.num_frames) == (128, 40_000, 16)
    assert (paper.width, paper.height) == (344, 192)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("unet.swap_windw=[1,1,1]", "did you mean 'swap_window'?"),
        ("seed", "is not path=value"),
        ("batch_size=0", "batch_size is 0: Input should be greater than 0"),
        ("batch_size.x=1", "'batch_size' holds a value, not keys"),
        ("height=30", "height is 30: give a multiple of 4, such as 32"),
        ("schedule=step", "'constant' or 'cosine'"),
    ],
)
def test_mistakes_in_a_config_are_told(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config("tiny", [override])


def test_an_unknown_preset_and_device_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_config("tinny", [])
    with pytest.raises(ConfigError, match="device is 'warp'"):
        device_of(config("device=warp"))
    assert device_of(config("device=cpu")) == torch.device("cpu")


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        load_config("tiny", ["prediction_type=epsilon", "zero_terminal_snr=true"])


def test_the_unet_must_fit(data: Path) -> None:
    with pytest.raises(ConfigError, match="swap_direction"):
        make_start(config("unet.swap_direction=up"), None)
