# SPDX-License-Identifier: Apache-2.0
"""List objects page by page; a page costs the same however many objects the bucket contains."""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.errors import bad_request
from wan_sandbox.bucket.store import Bucket
from wan_sandbox.bucket.wire import json_answer, object_resource

MAX_RESULTS = 1000
"""Objects and prefixes in a page, at most and by default."""

_LAST_CHARACTER = chr(0x10FFFF)


@dataclass(frozen=True, slots=True)
class Listing:
    """The query: names from ``start`` on, before ``stop`` and with ``prefix``."""

    prefix: str
    delimiter: str
    start: str
    stop: str
    glob: re.Pattern[str] | None
    folders_as_items: bool
    limit: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing: an object's name or a folded prefix, and where the next line starts."""

    name: str
    is_prefix: bool
    resume_at: str


async def list_objects(call: Call) -> web.StreamResponse:
    """Return one page."""
    home = call.store.bucket(call.bucket)
    listing = read_listing(call)
    items: list[dict[str, Any]] = []
    prefixes: list[str] = []
    answer: dict[str, Any] = {"kind": "storage#objects"}
    previous: Entry | None = None
    for entry in entries(home, listing):
        if len(items) + len(prefixes) == listing.limit and previous is not None:
            answer["nextPageToken"] = write_token(previous.resume_at)
            break
        previous = entry
        if entry.is_prefix:
            prefixes.append(entry.name)
        else:
            items.append(object_resource(home.objects[entry.name], call.base_url))
    if items:
        answer["items"] = items
    if prefixes:
        answer["prefixes"] = prefixes
    return json_answer(answer)


def read_listing(call: Call) -> Listing:
    """Parse the query of a listing.

    :raises StorageError: 400 for a token or number that cannot be parsed.
    """
    query = call.query
    limit = call.number("maxResults") or MAX_RESULTS
    if limit < 0:
        raise bad_request(f"Invalid value for maxResults: {limit}")
    prefix, glob, token = query.get("prefix", ""), query.get("matchGlob"), query.get("pageToken")
    literal = re.split(r"[*?\[{]", glob, maxsplit=1)[0] if glob else ""
    return Listing(
        prefix=literal if literal.startswith(prefix) else prefix,
        delimiter=query.get("delimiter", ""),
        start=max(query.get("startOffset", ""), read_token(token) if token else ""),
        stop=query.get("endOffset", ""),
        glob=glob_pattern(glob) if glob else None,
        folders_as_items=query.get("includeTrailingDelimiter", "").lower() == "true",
        limit=min(limit, MAX_RESULTS),
    )


def entries(home: Bucket, listing: Listing) -> Iterator[Entry]:
    """Yield entries from where the page starts. A folded prefix is skipped in one step, not walked through."""
    names, prefix, delimiter = home.names, listing.prefix, listing.delimiter
    at = bisect_left(names, max(prefix, listing.start))
    while at < len(names):
        name = names[at]
        if not name.startswith(prefix) or (listing.stop and name >= listing.stop):
            return
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0 and listing.glob is None:
            folder = name[: cut + len(delimiter)]
            resume_at = successor(folder)
            if listing.folders_as_items and name == folder:
                yield Entry(name, False, name + "\0")
            yield Entry(folder, True, resume_at)
            at = bisect_left(names, resume_at, at)
            continue
        if listing.glob is None or listing.glob.fullmatch(name):
            yield Entry(name, False, name + "\0")
        at += 1


def successor(prefix: str) -> str:
    """Return the first string that sorts after everything with this prefix."""
    stem = prefix.rstrip(_LAST_CHARACTER)
    return stem[:-1] + chr(ord(stem[-1]) + 1) if stem else _LAST_CHARACTER * 300


def write_token(resume_at: str) -> str:
    """Return a page token: where the next page starts."""
    return base64.urlsafe_b64encode(resume_at.encode("utf-8", "surrogatepass")).decode()


def read_token(token: str) -> str:
    """Parse a page token.

    :raises StorageError: 400.
    """
    try:
        return base64.b64decode(token.encode(), b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        raise bad_request("Invalid value for pageToken.") from None


_GLOB_PARTS = re.compile(r"\*\*|\*|\?|\[[^\]]+\]|\{[^}]*\}|.", re.DOTALL)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Convert a ``matchGlob`` to a pattern: ``*`` stays within a folder, ``**`` does not.

    :raises StorageError: 400.
    """
    try:
        return re.compile("".join(_translate(part) for part in _GLOB_PARTS.findall(glob)), re.DOTALL)
    except re.error:
        raise bad_request(f"Invalid value for matchGlob: {glob!r}") from None


def _translate(part: str) -> str:
    if part == "**":
        return ".*"
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if part.startswith("[") and len(part) > 2:
        inside = part[1:-1].replace("\\", r"\\")
        return "[" + ("^" + inside[1:] if inside[0] == "!" else inside) + "]"
    if part.startswith("{") and len(part) > 1:
        options = part[1:-1].split(",")
        return "(?:" + "|".join(glob_pattern(option).pattern for option in options) + ")"
    return re.escape(part)
