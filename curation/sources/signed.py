"""URLs without what proves that one may fetch them: that is used, and never kept.

A pure function of the URL, so the same list again names the same sources. Two URLs that differ in
nothing else are one source, as a URL is that was signed anew.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from curation.sources.uris import SCHEMES, is_object, recorded

# Names of parameters that are secrets by themselves. `key`, `auth` and `id` are not: some sites
# name videos so, and two videos must not become one.
TOKENS = {
    *("token", "access_token", "auth_token", "authtoken", "id_token", "jwt", "api_key", "apikey"),
    *("password", "passwd", "secret", "client_secret", "hdnea", "hdnts", "hdntl"),  # Akamai's
    *("access_key", "secret_key", "secret_access_key", "session_token", "account_key"),
}
# Signatures, and what stands beside them in URLs of S3 (versions 2 and 4), Google Cloud Storage,
# CloudFront and Azure (SAS); by themselves these names mean other things.
SIGNATURES = {"signature", "sig"}
SIGNED = {
    *("expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
    *("sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "sip"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv"),
}
SECRET_MARKS = re.compile("[@?#]")
PREFIXES = ("x-amz-", "x-goog-")
URL = re.compile(rf"(?:https?|{'|'.join(SCHEMES)})://[^\s'\"<>]+", re.IGNORECASE)


def without_secrets(url: str) -> str:
    """A URL without user, password, signature and tokens; one without any stays as it is.

    >>> without_secrets("https://me:pw@host/a.mp4?v=1&X-Amz-Signature=0f#t=5")
    'https://host/a.mp4?v=1#t=5'
    """
    if is_object(url):
        return recorded(url)
    if not SECRET_MARKS.search(url):  # most of a long list's; parsing costs 10 times as much
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # is no URL, which is told when it is fetched; but of whom is not
        return re.sub(r"(?<=//)[^/@]*@", "", url)
    out = url
    if "@" in parts.netloc:
        out = out.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    for mark, part in (("?", parts.query), ("#", parts.fragment)):
        kept = "&".join(each for each in part.split("&") if each not in secrets_in(part))
        if kept != part:
            out = out.replace(mark + part, mark + kept if kept else "", 1)
    return out


def secrets_in(query: str) -> set[str]:
    """The name=value of a query, as they stand in it, that are secrets."""
    found = {each: unquote(each.partition("=")[0]).lower() for each in query.split("&")}
    is_signed = bool(SIGNATURES & set(found.values()))
    gone = TOKENS | SIGNATURES | (SIGNED if is_signed else set())
    return {each for each, name in found.items() if name in gone or name.startswith(PREFIXES)}


def told_without(text: str, url: str) -> str:
    """A message without the secrets of a URL, and of every URL in it."""
    text = URL.sub(lambda found: without_secrets(found[0]), text)
    try:
        parts = urlsplit(url)
        values = [parts.password or "", parts.username or ""]
    except ValueError:
        return text
    for part in (parts.query, parts.fragment):
        values += [v for each in secrets_in(part) for _, v in parse_qsl(each)]
    for value in sorted(values, key=len, reverse=True):
        for form in {value, quote(value), quote(value, safe=""), unquote(value)}:
            if len(form) > 3:  # shorter ones are parts of words
                text = text.replace(form, "***")
    return text
