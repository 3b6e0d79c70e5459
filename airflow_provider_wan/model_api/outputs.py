# SPDX-License-Identifier: Apache-2.0
"""Find the files in a result's ``output``, whose shape differs from model to model.

Seen: ``image``, ``video`` (a URL), ``images``, ``videos`` (URLs), any subset of them; ``video_url``, ``download_url``,
``{"generated_video": {"uri": ...}}``; a bare URL; a list; nested objects; URLs without a suffix. Only ``http`` and
``https`` strings count. Whether a URL may be fetched is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

#: Words of a key that name the kind of its value: ``generated_video``, ``videoUrl``, ``cover_image_url``.
_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
_VIDEO_WORDS = frozenset({"video", "videos"})
_OTHER_WORDS = frozenset((
    "image", "images", "thumbnail", "thumbnails", "cover", "poster", "preview", "frame", "frames", "audio", "input",
))  # fmt: skip
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_NEUTRAL_WORDS = frozenset((
    "url", "urls", "uri", "uris", "href", "link", "links", "file", "files", "output", "outputs", "result", "results",
    "download", "media", "data", "content", "generated",
))  # fmt: skip
_MAX_NODES = 10_000


def output_urls(output: Any) -> tuple[str, ...]:
    """Return every URL of an output of any shape, in its order, each once."""
    return _unique(url for url, _ in _walk(output))


def video_urls(output: Any) -> tuple[str, ...]:
    """Return the URLs of an output that are to be landed as videos, in its order, each once.

    Those whose keys contain ``video`` and no word of another kind (a cover, an image); if there are
    none, those whose path ends like a video file's; if there are none either, those whose keys name no kind: a bare
    URL, a list, ``url``, ``download_url``.
    """
    found = list(_walk(output))
    named = [url for url, words in found if words & _VIDEO_WORDS and not words & _OTHER_WORDS]
    by_suffix = [url for url, _ in found if urlsplit(url).path.lower().endswith(_VIDEO_SUFFIXES)]
    neutral = [url for url, words in found if words <= _NEUTRAL_WORDS]
    return _unique(named or by_suffix or neutral)


def is_http_url(value: Any) -> bool:
    """Return whether a value is a complete ``http`` or ``https`` URL, without blanks or control characters."""
    # Every blank but the space is unprintable.
    if not isinstance(value, str) or " " in value or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _walk(output: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each URL with the words of the keys above it, in order; not by recursion: the server chooses the depth."""
    stack: list[tuple[Any, frozenset[str]]] = [(output, frozenset())]
    seen = 0
    while stack and seen < _MAX_NODES:
        seen += 1
        value, words = stack.pop()
        if isinstance(value, str):
            url = value.strip().replace(" ", "%20")  # a blank must not make a paid file unusable
            if is_http_url(url):
                yield url, words
        elif isinstance(value, dict):
            stack.extend((item, words | _words(str(key)[:100])) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend((item, words) for item in reversed(value))


def _words(key: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(key))


def _unique(urls: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(urls))
