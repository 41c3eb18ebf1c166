"""What the user gave -> Source records: files, folders, lists and URLs."""

from curation.sources.given import Given, expand, read_given
from curation.sources.source import Source, Span, content_id, is_remote, is_url, stamp_of

__all__ = [
    "Given",
    "Source",
    "Span",
    "content_id",
    "expand",
    "is_remote",
    "is_url",
    "read_given",
    "stamp_of",
]
