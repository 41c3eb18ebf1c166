"""Object stores as pyarrow opens them: what is at a URI, what is below it, why it cannot be read.

Credentials, region and endpoint are those of the environment (AWS_ENDPOINT_URL and the like) or of
the URI, as for a dataset there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from curation.settings import ConfigError
from curation.sources.folders import TEXT_OR_VIDEO, VIDEO_SUFFIXES
from curation.sources.notes import Notes
from curation.sources.signed import told_without
from curation.sources.subtitles import is_subtitle
from curation.sources.uris import base, parts_of, recorded

FAULTS = (OSError, ValueError, pa.ArrowException)  # what pyarrow raises
NUM_REQUESTS = 2  # for one that fails; downloads try again by themselves
LIST_BYTES = 8 << 20  # of a list at once; a request each
# What stores say, as pyarrow hands it on; the first that is found counts.
WORDS = [
    (error_class, re.compile(pattern, re.IGNORECASE))
    for error_class, pattern in (
        ("throttled", r"SLOW_?DOWN|THROTTL|TooManyRequests|RESOURCE_EXHAUSTED"),
        ("private", r"ACCESS_?DENIED|FORBIDDEN|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL"
                    r"|AUTHENTICATION|AUTHORIZATION|UNRECOGNIZED_CLIENT|INVALID_CLIENT|OPT_IN"),
        ("gone", r"NO_SUCH_(BUCKET|KEY)|RESOURCE_NOT_FOUND|(Container|Blob)NotFound"
                 r"|Bucket '.*' not found"),
        ("network", r"NETWORK_CONNECTION|TIMEOUT|timed out|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
                    r"|curlCode|UNAVAILABLE|HTTP (status|response code)\W+5\d\d"),
    )
]  # fmt: skip
CREDENTIALS = (
    "its credentials are those of this machine's environment (AWS_ACCESS_KEY_ID and so on)"
)
REQUEST_ID = re.compile(r" ?\(Request ID: [^)]*\)| Detail: \[errno \d+\].*")


class ObjectError(Exception):
    """An object that cannot be read; `error_class` is one of docs/shards.md."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(error_class, message)
        self.error_class = error_class
        self.message = message


def fault(error: BaseException, uri: str) -> ObjectError:
    """What an error of pyarrow at a URI is, without secrets."""
    says = REQUEST_ID.sub("", told_without(str(error), uri)).strip()
    found = next((name for name, words in WORDS if words.search(says)), None)
    if isinstance(error, FileNotFoundError):
        return ObjectError("gone", "there is no object of this name")
    if isinstance(error, PermissionError) or found == "private":
        return ObjectError("private", f"access is denied; {CREDENTIALS}: {says}")
    if isinstance(error, ConnectionError | TimeoutError):
        return ObjectError("network", says)
    return ObjectError(found or "download_failed", says)


@lru_cache(maxsize=64)  # pyarrow may ask a bucket for its region
def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a bucket's URI and the bucket as a path in it."""
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if isinstance(filesystem, pafs.S3FileSystem):
        # From a URI it tries each request 31 times, 0.2 s apart (pyarrow 26), and nothing in the
        # URI says otherwise; what it pickles itself as are the arguments of another one.
        make, (options,) = filesystem.__reduce__()
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=NUM_REQUESTS)
        filesystem = make(options | {"retry_strategy": retries})
    return filesystem, path


def opened(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of an object's URI, and the path of the object in it.

    Raises what pyarrow does, and ValueError for a URI that names no bucket.
    """
    parts = parts_of(uri)
    if not parts.host:
        raise ValueError("names no bucket")
    if "/" in parts.user:
        raise ValueError("has a password with a slash; write it as %2F")
    place = base(parts) + (f"?{parts.options}" if parts.options else "")
    filesystem, root = filesystem_of(place)
    return filesystem, "/".join(filter(None, [root, parts.key.decode()]))


# -- what a user gave


def look(uri: str) -> pafs.FileInfo:
    """What is at a URI that a user gave: a file or a folder. ConfigError for neither."""
    try:
        filesystem, path = opened(uri)
        bucket = path.partition("/")[0]
        info, whole = filesystem.get_file_info(path), None
        if info.type == pafs.FileType.NotFound and path != bucket:
            whole = filesystem.get_file_info(bucket)
    except FAULTS as error:
        raise refused(error, uri) from None
    if info.type != pafs.FileType.NotFound:
        return info
    if whole is None or whole.type == pafs.FileType.NotFound:
        raise ConfigError(f"{recorded(uri)}: there is no bucket {bucket!r}")
    raise ConfigError(f"{recorded(uri)}: there is no object of this name, and none below it")


def refused(error: BaseException, uri: str) -> ConfigError:
    """The same, as a user's mistake."""
    return ConfigError(f"{recorded(uri)} cannot be read: {fault(error, uri).message}")


def videos_below(uri: str, notes: Notes) -> Iterator[str]:
    """Names below a folder of the objects that are videos by their suffix, sorted.

    Hidden ones are left out. First bytes are not looked at: that were a request for each.
    """
    try:
        filesystem, root = opened(uri)
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except FAULTS as error:
        raise refused(error, uri) from None
    names = [each.path[len(root) + 1 :] for each in found if each.type == pafs.FileType.File]
    for name in sorted(names):
        suffix = PurePosixPath(name).suffix.lower()
        if any(part.startswith(".") for part in name.split("/")):
            notes.leave_out("hidden", name)
        elif is_subtitle(name):
            notes.leave_out("subtitles, which are not read beside objects", name)
        elif suffix in VIDEO_SUFFIXES or suffix in TEXT_OR_VIDEO:
            yield name
        else:
            notes.no_videos[suffix or "without a suffix"] += 1


def copy_list(uri: str, target: Path) -> None:
    """Write a list to a local file; ConfigError where that cannot be done."""
    try:
        filesystem, path = opened(uri)
        with filesystem.open_input_file(path) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file, LIST_BYTES)
    except FAULTS as error:
        raise refused(error, uri) from None
