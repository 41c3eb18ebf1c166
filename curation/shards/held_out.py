"""Which videos are held out of training: a pure function of their ids."""

from __future__ import annotations

import hashlib


def held_out_hash(video_id: str) -> int:
    """A hash of a video's id, in [0, 2**64). With a share s the videos below s * 2**64 are held
    out: for evaluation alone, all their clips, in whatever dataset or subset they are."""
    digest = hashlib.blake2b(video_id.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big")


def is_held_out(video_id: str, share: float) -> bool:
    """Whether a video is one of the share in [0, 1] that nothing is trained on."""
    return held_out_hash(video_id) < share * 2**64
