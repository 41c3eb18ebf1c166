"""URIs of objects: s3://bucket/name and the like, as people write them and as they are recorded.

    s3://bucket/folder/a.mp4      gs://bucket/a.mp4      abfs://container@account.dfs.core.windows.net/a.mp4

What follows a `?` (endpoint_override, region ...) and a user or password say how an object is
reached, not which one it is: they are used and never recorded. In a name `?` and `%` are written
%3F and %25; every other character may stand as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

# Those of pyarrow's filesystems that are object stores; hdfs:// would need a Java of its own.
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
OBJECT = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
SAFE = "/!$&'()*+,;=:@"  # in a path, beside letters and digits: RFC 3986, 3.3
AZURE = ".core.windows.net"


def is_object(text: str) -> bool:
    return OBJECT.match(text) is not None


class Parts(NamedTuple):
    """What a URI says."""

    scheme: str  # small letters
    user: str  # with the password; "" where there is none
    host: str  # the bucket; Azure's account
    key: bytes  # the object's name, or that of a folder, without slashes at its ends
    options: str  # how it is reached, as pyarrow names that

    @property
    def container(self) -> str:
        """Azure's, which stands where others have the user; "" elsewhere."""
        return self.user.partition(":")[0] if self.scheme.startswith("abfs") else ""

    @property
    def names_its_way(self) -> bool:
        """Whether it says where requests go, or who asks."""
        elsewhere = self.scheme.startswith("abfs") and not self.host.lower().endswith(AZURE)
        return bool(self.options or elsewhere or self.user != self.container)


def parts_of(uri: str) -> Parts:
    """The parts of an object's URI, whatever is wrong with it.

    >>> parts_of("S3://me:word@bucket/a b%25.mp4?region=eu-west-1")
    Parts(scheme='s3', user='me:word', host='bucket', key=b'a b%.mp4', options='region=eu-west-1')
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    rest, _, options = rest.partition("?")
    authority, _, name = rest.partition("/")
    if ":" in authority and "@" not in authority and "@" in name and scheme[0] != "a":
        # A secret key with a slash in it, which is to be written %2F. No bucket has a colon.
        before, _, name = name.rpartition("@")
        bucket, _, name = name.partition("/")
        authority = f"{authority}/{before}@{bucket}"
    user, _, host = authority.rpartition("@")
    key = unquote_to_bytes(name.encode("utf-8", "surrogateescape")).strip(b"/")
    return Parts(scheme, user, host, key, options)


def recorded(uri: str) -> str:
    """An object's URI as it is recorded and printed: one for each, and nothing secret in it.

    >>> recorded("s3://me:word@bucket/a b#1.mp4?endpoint_override=host:9000")
    's3://bucket/a%20b%231.mp4'
    """
    parts = parts_of(uri)
    host = f"{parts.container}@{parts.host}" if parts.container else parts.host
    return f"{parts.scheme}://{host}/{quote(parts.key, SAFE)}".rstrip("/")


def below(uri: str, name: str) -> str:
    """The URI of what has a name, with slashes, below an object's folder; reached the same way.

    >>> below("s3://me:word@bucket/a?region=x", "b c/50%.mp4")
    's3://me:word@bucket/a/b%20c/50%25.mp4?region=x'
    """
    parts = parts_of(uri)
    key = b"/".join(filter(None, [parts.key, name.encode("utf-8", "surrogateescape")]))
    return f"{base(parts)}/{quote(key, SAFE)}" + (f"?{parts.options}" if parts.options else "")


def folder(uri: str) -> str:
    """The URI of the folder that an object is in; reached the same way."""
    parts = parts_of(uri)
    key = parts.key.rpartition(b"/")[0]
    return f"{base(parts)}/{quote(key, SAFE)}" + (f"?{parts.options}" if parts.options else "")


def base(parts: Parts) -> str:
    """The bucket's own URI, without options."""
    return f"{parts.scheme}://" + (f"{parts.user}@" if parts.user else "") + parts.host
