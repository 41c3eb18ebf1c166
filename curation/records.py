"""What is told of one video: progress while it is worked on, then ledger rows and kept clips.

Nothing here loads a video library: what a Ray process passes on it need not be able to decode.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from curation.rules import Verdict, judge, video_verdict
from curation.scores.table import SCORES
from curation.shards import DROPPED, FAILED, KEPT, LEDGER_SCHEMA, SHARD_SCHEMA
from curation.shards.schema import ABOUT
from curation.sources import Source
from curation.sources.source import storable

if TYPE_CHECKING:
    from curation.cuts.encodes import Clip
    from curation.media.files import MediaError
    from curation.pipelines import Rule

# Called with the stage and the position in the video, in seconds, whenever there is progress.
Beat = Callable[[str, float], None]
# Faults of the machine or the network, no verdict on a video: the next run tries again by itself.
TRIED_AGAIN = frozenset(
    {"disk_full", "no_memory", "lost", "changing", "network", "throttled", "bot_check", "live"}
    | {"unreachable"}  # network, in datasets of before 2026-11-26
)
COPY = "copy"  # a source that turned out to be the video of another one
# Every class that a failure may have (docs/shards.md). Those of one reason stand together.
ERROR_CLASSES = TRIED_AGAIN | {
    *("missing", "empty", "not_video", "no_video_stream", "truncated", "corrupt", "outside"),
    *("private_address", "too_large", "not_a_video", "download_failed"),
    *("gone", "private", "geo", "age", "drm", "format"),
    COPY,
    *("crashed", "stalled", "timeout", "memory"),
    *("encode", "caption", "scorer", "internal"),
}
MAX_MESSAGE = 2000  # characters of an error that a ledger row holds: a traceback, not a log


@dataclass(frozen=True)
class KeptClip:
    """A clip that is to be kept: its row, its media and the frames of it that models will see."""

    row: dict[str, Any]  # of SHARD_SCHEMA, its `clip` still None
    media: bytes  # mp4
    caption_frames: list[bytes] = field(default_factory=list)  # JPEGs, for the caption model
    model_frames: list[bytes] = field(default_factory=list)  # JPEGs, for models that score it

    @property
    def clip_id(self) -> str:
        return self.row["clip_id"]

    def shard_row(self) -> dict[str, Any]:
        """The row as a shard stores it, with its media.

        The id may be a list's and hold anything: a path made of it stays in its folder.
        """
        name = re.sub(r"[/\\\0]", "_", self.clip_id)
        return self.row | {"clip": {"bytes": self.media, "path": f"{name}.mp4"}}


@dataclass(frozen=True)
class VideoResult:
    """Everything decided about one video: its ledger row first, then its clips', and those kept.

    What a later stage finds makes a new result; the rows of one that is there never change.
    """

    ledger: list[dict[str, Any]]
    clips: list[KeptClip] = field(default_factory=list)

    @property
    def video(self) -> dict[str, Any]:
        """The ledger row of the video itself."""
        return self.ledger[0]


@dataclass(frozen=True)
class Candidate:
    """A stretch of frames that is a clip if every rule is met."""

    clip_id: str
    scene_index: int
    span: tuple[int, int]  # frames [first, last)
    start_s: float
    end_s: float
    scores: dict[str, float | None]
    verdict: Verdict | None
    error: MediaError | None = None  # it could not be scored
    perceptual_hash: bytes | None = None

    @property
    def is_kept(self) -> bool:
        return self.verdict is None and self.error is None


def clip_id(video_id: str, start_s: float, end_s: float) -> str:
    """The id of a cut of a video: its times to the millisecond, so any machine makes the same."""
    return f"{video_id}_{round(start_s * 1000):08d}_{round(end_s * 1000):08d}"


# -- rows of the ledger


def ledger_row(source: Source, **known: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names)
    # A source that failed before it had an id is known by where it is.
    video_id = source.id or hashlib.sha256(source.url.encode()).hexdigest()[:20]
    about = {"source_url": source.url, "source_fingerprint": source.fingerprint}
    if known.get("level") == "video":
        about |= {name: getattr(source, name) for name in ABOUT}
    return empty | {"video_id": video_id, "attempts": 1} | about | known


def decided(verdict: Verdict | None) -> dict[str, Any]:
    """The decision columns of a ledger row."""
    if verdict is None:
        return {"decision": KEPT, "rule": None, "value": None, "threshold": None}
    return {"decision": DROPPED, **vars(verdict)}


def failure(error_class: str, message: str) -> dict[str, Any]:
    """The outcome columns of a ledger row whose video or clip could not be worked on."""
    assert error_class in ERROR_CLASSES, error_class
    message = storable(message[:MAX_MESSAGE])  # what a process said may be in no encoding
    return {"decision": FAILED, "error_class": error_class, "message": message}


def failed_row(source: Source, error_class: str, message: str, **known: Any) -> dict[str, Any]:
    """The ledger row of a video that could not be curated."""
    return ledger_row(source, level="video", **failure(error_class, message), **known)


def copy_row(source: Source, video_id: str, first_url: str) -> dict[str, Any]:
    """The ledger row of a source that turned out to be a video that another one is."""
    message = f"the same video as {first_url}, which stands for both"
    return failed_row(replace(source, id=None), COPY, message, copy_of=video_id)


def video_row(
    source: Source,
    scores: Mapping[str, float | None],
    outcome: Mapping[str, Any],
    stage_s: dict[str, float],
    box: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """The ledger row of a video; `outcome` is of `decided` or `failure`."""
    return ledger_row(
        source, level="video", stage_s=stage_s, watermark_box=box, **scores, **outcome
    )


def clip_row(
    source: Source,
    candidate: Candidate,
    caption: str | None,
    box: tuple[float, ...] | None,
    preview: list[bytes],
) -> dict[str, Any]:
    """The ledger row of a clip, kept or not."""
    return ledger_row(
        source,
        level="clip",
        clip_id=candidate.clip_id,
        start_s=candidate.start_s,
        end_s=candidate.end_s,
        caption=caption,
        watermark_box=box,
        preview=preview,
        perceptual_hash=candidate.perceptual_hash,
        **candidate.scores,
        **outcome_of(candidate),
    )


def outcome_of(candidate: Candidate) -> dict[str, Any]:
    """The outcome columns of a clip."""
    if candidate.error is not None:
        return failure(candidate.error.error_class, candidate.error.message)
    return decided(candidate.verdict)


def outside_row(
    source: Source, start_s: float, end_s: float, outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """The ledger row of a given span that holds no frame of the video."""
    return ledger_row(
        source,
        level="clip",
        clip_id=clip_id(source.id or "", start_s, end_s),
        start_s=start_s,
        end_s=end_s,
        **outcome,
    )


# -- rows of a shard


def shard_row(source: Source, candidate: Candidate, clip: Clip) -> dict[str, Any]:
    """The row of a kept clip, without its media and its caption."""
    first, last = candidate.span
    duration_s = candidate.scores["duration"]
    assert duration_s is not None
    empty: dict[str, Any] = dict.fromkeys(SHARD_SCHEMA.names)
    return empty | dict(
        clip_id=candidate.clip_id,
        video_id=source.id,
        source_url=source.url,
        **{name: getattr(source, name) for name in ABOUT},
        start_s=candidate.start_s,
        end_s=candidate.end_s,
        duration_s=duration_s,
        fps=(last - first) / duration_s,
        num_frames=last - first,
        width=clip.width,
        height=clip.height,
        codec=clip.codec,
        scene_index=candidate.scene_index,
        perceptual_hash=candidate.perceptual_hash,
        **candidate.scores,
    )


# -- what later stages find


def with_attempts(result: VideoResult, attempts: int) -> VideoResult:
    """A result whose rows tell how often the video was tried."""
    return replace(result, ledger=[row | {"attempts": attempts} for row in result.ledger])


def with_cost(result: VideoResult, stage: str, cpu_s: float) -> VideoResult:
    """A result whose video has spent more CPU seconds in a stage."""
    spent = dict(result.video["stage_s"] or {})
    spent[stage] = spent.get(stage, 0.0) + cpu_s
    return replace(result, ledger=[result.video | {"stage_s": spent}, *result.ledger[1:]])


def with_late_scores(
    result: VideoResult, found: Mapping[str, Mapping[str, Any]], rules: Mapping[str, Rule]
) -> VideoResult:
    """A result with the columns that models scored, joined by clip id, and decided anew.

    `found` holds by clip id the ledger columns of a kept clip, or the `error` that a scorer met. A
    clip whose scorer failed is failed, of class scorer, and so is a video that keeps none because
    of it; what a rule does not meet is dropped, its media with it.
    """
    asked = {clip.clip_id for clip in result.clips}
    rows = {
        row["clip_id"]: scored_late(row, found[row["clip_id"]], rules)
        for row in result.ledger
        if row["clip_id"] in asked
    }
    columns = {clip_id: scores_in(row) for clip_id, row in rows.items()}
    done = with_clip_rows(result, rows, columns)
    if done.clips or not result.clips:
        return done
    lost = any(row["decision"] == FAILED for row in rows.values())
    outcome: dict[str, Any] = {"decision": FAILED, "error_class": "scorer"}
    if not lost:
        dropped = [r for r in done.ledger if r["level"] == "clip" and r["decision"] == DROPPED]
        verdicts = [Verdict(row["rule"], row["value"], row["threshold"]) for row in dropped]
        outcome = decided(video_verdict(verdicts, rules))
    return replace(done, ledger=[done.video | outcome, *done.ledger[1:]])


def scored_late(
    row: dict[str, Any], found: Mapping[str, Any], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """A clip's ledger row with what models found of it, decided anew."""
    if "error" in found:
        return row | failure("scorer", found["error"])
    scored = row | dict(found)
    return scored | decided(judge(scored, rules))


def scores_in(ledger_row: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a ledger row, users' own among them."""
    others = set(LEDGER_SCHEMA.names) - set(SCORES)
    return {name: value for name, value in ledger_row.items() if name not in others}


def with_captions(
    result: VideoResult, captions: Mapping[str, Sequence[str | Exception]], model: str
) -> VideoResult:
    """A result with a model's captions, joined by clip id; several frames' are told once each.

    A kept clip that could not be captioned is failed, of class caption, and so is a video that
    keeps no clip because of it.
    """
    asked = {clip.clip_id for clip in result.clips}
    rows = {
        row["clip_id"]: captioned(row, captions.get(row["clip_id"]))
        for row in result.ledger
        if row["clip_id"] in asked
    }
    columns = {
        clip_id: {"caption": row["caption"], "caption_model": model}
        for clip_id, row in rows.items()
    }
    done = with_clip_rows(result, rows, columns)
    done = replace(done, clips=[replace(clip, caption_frames=[]) for clip in done.clips])
    if done.clips or not result.clips:
        return done
    lost = {"decision": FAILED, "error_class": "caption"}
    return replace(done, ledger=[done.video | lost, *done.ledger[1:]])


def captioned(row: dict[str, Any], told: Sequence[str | Exception] | None) -> dict[str, Any]:
    """A clip's ledger row with what a model told of its frames; None: it had no frame."""
    if told is None:
        return row | failure("caption", "caption: no frame was taken from this clip")
    errors = [each for each in told if isinstance(each, Exception)]
    if errors:
        return row | failure("caption", str(errors[-1]))
    texts = dict.fromkeys(each for each in told if isinstance(each, str) and each)
    return row | {"caption": "; ".join(texts) or None}


def with_clip_rows(
    result: VideoResult,
    rows: Mapping[str, dict[str, Any]],
    columns: Mapping[str, Mapping[str, Any]],
) -> VideoResult:
    """A result with new ledger rows and shard columns of its kept clips, both by clip id.

    Of the clips those are left that their new rows keep.
    """
    clips = [
        replace(clip, row=clip.row | dict(columns[clip.clip_id]))
        for clip in result.clips
        if rows[clip.clip_id]["decision"] == KEPT
    ]
    return VideoResult([rows.get(row["clip_id"], row) for row in result.ledger], clips)
