"""The id of a local source from its content, and the timed text beside it: what reads its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from curation.sources.source import ID_DIGITS, Source, sha256_of, stamp_of
from curation.sources.subtitles import with_subtitles


def with_content_id(source: Source, beat: Callable[[], None]) -> Source:
    """A local source with an id, and the hash and stamp of its file.

    What is no file is for its opening to tell.

    `beat` is called as it is read. Raises OSError where it cannot be read.
    """
    assert source.path is not None
    if not os.path.isfile(source.path):  # noqa: PTH113  once per source
        return source
    stamp = source.stamp or stamp_of(source.path)
    sha256 = source.sha256 or sha256_of(source.path, beat)
    return replace(source, id=source.id or sha256[:ID_DIGITS], sha256=sha256, stamp=stamp)


def identify(
    source: Source, needs_text: bool, folder: Path, beat: Callable[[str, float], None]
) -> Source:
    """The job of a media process: a local source with its id, `needs_text` and what is beside it.

    What cannot be read stays without an id, and is told by the media stage.
    """
    try:
        if source.id is None:
            source = with_content_id(source, lambda: beat("identify", 0.0))
    except OSError:
        pass
    return with_subtitles(source) if needs_text else source
