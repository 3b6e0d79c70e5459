# SPDX-License-Identifier: Apache-2.0
"""Finding the files in a result's ``output``, whose shape differs from model to model.

Seen: ``image``, ``video`` (a URL), ``images``, ``videos`` (URLs), any subset of them; a bare URL; a list;
nested objects. Only ``http`` and ``https`` strings count. Nothing here says that a URL may be fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

_VIDEO_KEYS = frozenset({"video", "videos"})
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_NEUTRAL_KEYS = frozenset({"url", "urls", "file", "files", "output", "outputs"})
_MAX_NODES = 10_000


def output_urls(output: Any) -> tuple[str, ...]:
    """Give every URL of an output, in its order, each once.

    :param output: the ``output`` of a result, of any shape.
    """
    return _unique(url for url, _ in _walk(output))


def video_urls(output: Any) -> tuple[str, ...]:
    """Give the URLs of an output that are to be landed as videos, in its order, each once.

    Those under ``video`` or ``videos`` first; if there are none, those whose path ends like a video file's;
    if there are none either, those that nothing calls an image: a bare URL, a list, a plain ``url``.

    :param output: the ``output`` of a result, of any shape.
    """
    found = list(_walk(output))
    named = [url for url, keys in found if not _VIDEO_KEYS.isdisjoint(keys)]
    by_suffix = [url for url, _ in found if urlsplit(url).path.lower().endswith(_VIDEO_SUFFIXES)]
    neutral = [url for url, keys in found if _NEUTRAL_KEYS.issuperset(keys)]
    return _unique(named or by_suffix or neutral)


def is_http_url(value: Any) -> bool:
    """Whether a value is a complete ``http`` or ``https`` URL, without blanks or control characters.

    :param value: anything.
    """
    if not isinstance(value, str) or any(char.isspace() or not char.isprintable() for char in value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _walk(output: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (url, the keys on the way to it), in order, without recursion: depth is the server's choice."""
    stack: list[tuple[Any, tuple[str, ...]]] = [(output, ())]
    seen = 0
    while stack and seen < _MAX_NODES:
        seen += 1
        value, keys = stack.pop()
        if isinstance(value, str):
            url = value.strip().replace(" ", "%20")  # a blank does not make a file that was paid for unusable
            if is_http_url(url):
                yield url, keys
        elif isinstance(value, dict):
            stack.extend((item, (*keys[-8:], str(key).lower())) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend((item, keys) for item in reversed(value))


def _unique(urls: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(urls))
