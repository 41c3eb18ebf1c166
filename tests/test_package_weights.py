"""Weights out of packages: ncnn's files read back, and pickles that are no arrays refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.package_weights import NCNN_FP16, RRDB_NAMES, ArraysOnly, ncnn_state

PARAM = """7767517
4 4
Input      in   0 1 data
Convolution c0  1 1 data a 0=1 1=3 4=1 5=1 6=27
PReLU      p0   1 1 a b 0=1
Convolution c1  1 1 b output 0=2 1=3 4=1 5=1 6=18 9=2 -23310=1,2.0e-01
"""


def test_halves_floats_and_slopes_are_read_in_order() -> None:
    """27 halves are padded to four bytes; the second layer's weights are floats."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=27).astype("<f2"), rng.normal(size=18).astype("<f4")
    tag, plain = (np.array([n], "<u4").tobytes() for n in (NCNN_FP16, 0))
    bias = np.array([0.5], "<f4").tobytes()
    data = tag + first.tobytes() + b"\0\0" + bias + np.array([0.25], "<f4").tobytes()
    data += plain + second.tobytes() + np.array([1, 2], "<f4").tobytes()
    state = ncnn_state(PARAM, data, ["body.0", "body.1", "body.2"])
    assert torch.equal(state["body.0.weight"],
                       torch.from_numpy(first.astype(np.float32).reshape(1, 3, 3, 3)))  # fmt: skip
    assert state["body.0.bias"].tolist() == [0.5] and state["body.1.weight"].tolist() == [0.25]
    assert torch.equal(state["body.2.weight"], torch.from_numpy(second.reshape(2, 1, 3, 3)))
    assert state["body.2.bias"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="4 of"):
        ncnn_state(PARAM, data + bias, ["body.0", "body.1", "body.2"])
    with pytest.raises(ValueError, match="tag 0x7"):
        ncnn_state(PARAM, np.array([7], "<u4").tobytes() + data[4:], ["a", "b", "c"])
    assert len(RRDB_NAMES) == 1 + 23 * 3 * 5 + 5


def test_a_pickle_that_is_no_array_is_refused() -> None:
    arrays = {"a": np.arange(3.0)}
    loaded = ArraysOnly(io.BytesIO(pickle.dumps(arrays))).load()
    assert loaded["a"].tolist() == [0, 1, 2]
    with pytest.raises(pickle.UnpicklingError, match="is not an array"):
        ArraysOnly(io.BytesIO(pickle.dumps(Path("x")))).load()
