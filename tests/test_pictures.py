"""What is cut shows what the analysis saw; else it is made otherwise, or fails alone."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeVideo, Shot, analysed, read_frames

from curation.cuts.clips import cut
from curation.cuts.encodes import Clip
from curation.cuts.packets import read_source
from curation.cuts.planner import plan
from curation.decode.signatures import Signatures
from curation.media.files import MediaError
from curation.media.probes import probe
from curation.pipelines import Cut

FINE = Cut(crf=10)
CLOSED = ("-bf", 3, "-g", 30, "-keyint_min", 5)
JOINED = ("-x264-params", "keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0")
SHOTS = (Shot("test", 2.4), Shot("fractal", 2.0), Shot("gradient", 1.6))


@pytest.fixture(scope="session")
def make_video(make_video: MakeVideo) -> MakeVideo:
    return functools.partial(make_video, size="160x90", shots=SHOTS)


def spoilt(signatures: Signatures, frame: int) -> Signatures:
    """As if the analysis had seen another picture at one frame."""
    other = Signatures(signatures.turn)
    other.fields += signatures.fields
    other.fields[frame * 64 : frame * 64 + 8] = bytes(
        255 - v for v in other.fields[frame * 64 : frame * 64 + 8]
    )
    return other


def cut_all(
    path: Path, spans: list[tuple[int, int]], signatures: Signatures
) -> list[Clip | MediaError]:
    timeline = analysed(path)[0]
    return cut(str(path), probe(path), timeline, signatures, spans, FINE, lambda: None)


def test_a_seek_that_brings_garbage_with_right_times_is_seen(make_video: MakeVideo) -> None:
    """MPEG-4 part 2 in a transport stream with one keyframe: no index, no complaint."""
    options = ("-c:v", "mpeg4", "-g", 999, "-sc_threshold", 1000000000, "-q:v", 4)
    path = make_video("long_group.ts", options=(*options, "-enc_time_base", "1/25"))
    (made,) = cut_all(path, [(60, 110)], analysed(path)[1])
    assert isinstance(made, Clip)
    clip = path.with_name("clip.mp4")
    clip.write_bytes(made.data)
    pairs = zip(read_frames(clip), read_frames(path)[60:110], strict=True)
    errors = [np.mean((a.picture.astype(float) - b.picture) ** 2) for a, b in pairs]
    assert max(errors) < 10  # 38 dB; 236 after the first seek


@pytest.mark.parametrize("frame", [70, 80], ids=["first-frames", "every-16th"])
def test_an_encoded_clip_of_other_pictures_fails_alone(make_video: MakeVideo, frame: int) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    seen = spoilt(analysed(path)[1], frame)
    start = frame if frame == 70 else frame - 16
    before, wrong, behind = cut_all(path, [(1, 25), (start, 100), (110, 140)], seen)
    assert isinstance(before, Clip) and isinstance(behind, Clip)
    assert isinstance(wrong, MediaError) and wrong.error_class == "encode"
    assert "another picture than was analysed" in wrong.message


def test_a_copied_clip_begins_with_the_picture_that_was_seen(make_video: MakeVideo) -> None:
    path = make_video("closed.mp4", options=CLOSED)
    seen = analysed(path)[1]
    made = cut_all(path, [(0, 30), (30, 60)], seen)
    assert [clip.made for clip in made if isinstance(clip, Clip)] == ["copied", "copied"]
    assert isinstance(cut_all(path, [(0, 30)], spoilt(seen, 0))[0], MediaError)


def test_of_copied_clips_the_first_is_checked_and_few_others(make_video: MakeVideo) -> None:
    """A keyframe is dear to decode; what may be wrong in a copy is the header that all share."""
    path = make_video("closed.mp4", options=CLOSED)
    second = cut_all(path, [(0, 30), (30, 60)], spoilt(analysed(path)[1], 30))[1]
    assert isinstance(second, Clip) and second.made == "copied"


@pytest.mark.parametrize("place", ["head", "body", "tail"])
def test_every_part_of_a_joined_clip_begins_with_the_picture_that_was_seen(
    make_video: MakeVideo, place: str
) -> None:
    path = make_video("joined.mp4", options=JOINED)
    timeline, seen = analysed(path)
    source = read_source(str(path), probe(path), joins=True)
    planned = source and plan(source, timeline, 25, 94)
    assert planned and planned.head and planned.tail
    first = {"head": planned.head, "body": planned.body, "tail": planned.tail}[place].first
    assert [c.made for c in cut_all(path, [(25, 94)], seen) if isinstance(c, Clip)] == ["joined"]
    made = cut_all(path, [(25, 94)], spoilt(seen, first))[0]
    assert isinstance(made, MediaError) or made.made == "encoded"


def test_a_stream_whose_headers_change_is_not_copied(make_video: MakeVideo) -> None:
    """The header of a copy is the first one."""
    one = make_video(
        "one.ts", shots=SHOTS[:1], options=("-x264-params", "ref=1:bframes=0:keyint=30")
    )
    later = ("-x264-params", "ref=1:bframes=0:cabac=0:keyint=30", "-output_ts_offset", 2.4)
    two = make_video("two.ts", shots=SHOTS[1:2], options=later)
    both = one.with_name("both.ts")
    both.write_bytes(one.read_bytes() + two.read_bytes())
    made = cut_all(both, [(0, 30), (90, 110)], analysed(both)[1])
    assert [getattr(clip, "made", clip) for clip in made] == ["encoded", "encoded"]
