"""What today's sites need on a machine beside yt-dlp, asked before a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from curation.downloads.fetches import id_in

RUNTIME = "deno"  # the one that yt-dlp uses unasked; it has rights to nothing


def lacking(urls: Iterable[str]) -> str | None:
    """What to install for URLs of YouTube, as a sentence; None where nothing is missing.

    Without a JavaScript runtime yt-dlp cannot solve YouTube's challenges: most formats are missing
    or answer 403 (yt-dlp #15675, #15782).
    """
    if shutil.which(RUNTIME) or not any(map(id_in, urls)):
        return None
    return (
        f"YouTube needs a JavaScript runtime, and {RUNTIME} is not on the PATH of this machine: "
        "most videos will fail or be small. Install it on every machine (https://deno.com)"
    )
