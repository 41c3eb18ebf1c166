"""What is looked for: texts to search for, addresses of playlists, channels and feeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from curation.settings import ConfigError, nearest
from curation.sources import is_url
from curation.sources.source import is_storable

DEFAULT_QUERIES = Path(__file__).with_name("queries.yaml")
ADDRESS = re.compile(r"[\w-]+(\.[\w-]+)+/\S*|(www|m)\.[\w-]+(\.[\w-]+)+")


class Query(NamedTuple):
    """One thing to ask a site for."""

    text: str  # as the user wrote it
    target: str  # as yt-dlp is asked: an address, or a search with its prefix
    category: str | None = None  # of all that is found


def read_queries(path: Path) -> list[tuple[str, str]]:
    """(category, text) of every query of a YAML file, in order.

    Raises ConfigError for a file that is no map of categories with lists of texts.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--queries {path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"--queries {path}: write a list of queries under each category")
    return [
        (str(category), text)
        for category, texts in tree.items()
        for text in texts_of(texts, f"--queries {path}: {category}")
    ]


def texts_of(texts: Any, where: str) -> list[str]:
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        says = "write a list of texts; those with a colon, or numbers alone, between quotes"
        raise ConfigError(f"{where}: {texts!r}: {says}")
    return texts


def queries_of(
    pairs: Iterable[tuple[str | None, str]], search: str, keys: Collection[str]
) -> list[Query]:
    """Queries of (category, text) pairs, each once; `search` is the prefix of a plain text's.

    `keys` are the prefixes that yt-dlp knows. Raises ConfigError for another prefix as `search` and
    for a text that is empty or an address without https://.
    """
    if search not in keys:
        raise ConfigError(f"--search {search}: no such search of yt-dlp{nearest(search, keys)}")
    found = [Query(text, target_of(text, search, keys), category) for category, text in pairs]
    return list(dict.fromkeys(found))


def target_of(text: str, search: str, keys: Collection[str]) -> str:
    """What yt-dlp is asked for.

    >>> target_of("dogs: a story", "ytsearch", {"ytsearch"})
    'ytsearchall:dogs: a story'
    """
    text = text.strip()
    if not text or not is_storable(text):
        raise ConfigError(f"the query {text!r} is no text to search for")
    if is_url(text):
        return text
    if any(re.match(rf"{re.escape(key)}(all|[1-9]\d*)?:", text) for key in keys):
        return text
    if ADDRESS.fullmatch(text):
        raise ConfigError(f"the query {text} is an address without its beginning: https://{text}")
    return f"{search}all:{text}"  # its results come a page at a time, as many as are asked for
