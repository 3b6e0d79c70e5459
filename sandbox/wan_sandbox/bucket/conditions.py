# SPDX-License-Identifier: Apache-2.0
"""Preconditions: ``ifGenerationMatch`` and its relatives, for JSON queries and HTTP headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wan_sandbox.bucket.errors import (
    StorageError,
    bad_request,
    not_modified,
    precondition_failed,
)


class Versioned(Protocol):
    """What a condition compares with: an object or a bucket."""

    @property
    def generation(self) -> int:
        """The version of the object's content."""

    @property
    def metageneration(self) -> int:
        """The version of its metadata."""

    @property
    def etags(self) -> frozenset[str]:
        """The tags that match it in ``If-Match``."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The preconditions of a request; none by default."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None
    etags: frozenset[str] | None = None
    not_etags: frozenset[str] | None = None

    def check(self, current: Versioned | None) -> None:
        """Check the conditions of a request that changes something.

        :param current: the live object, or None if there is none.
        :raises StorageError: 412.
        """
        if self._broken_match(current) or self._broken_not_match(current):
            raise precondition_failed()

    def check_read(self, current: Versioned) -> None:
        """Check the conditions of a read.

        :raises StorageError: 412, or 304 where a ``NotMatch`` condition does not hold.
        """
        if self._broken_match(current):
            raise precondition_failed()
        if self._broken_not_match(current):
            raise not_modified()

    def _broken_match(self, current: Versioned | None) -> bool:
        generation = 0 if current is None else current.generation
        if self.generation is not None and self.generation != generation:
            return True
        if self.metageneration is not None and (current is None or self.metageneration != current.metageneration):
            return True
        return self.etags is not None and not _names(self.etags, current)

    def _broken_not_match(self, current: Versioned | None) -> bool:
        generation = 0 if current is None else current.generation
        if self.not_generation is not None and self.not_generation == generation:
            return True
        if self.not_metageneration is not None and (
            current is None or self.not_metageneration == current.metageneration
        ):
            return True
        return self.not_etags is not None and _names(self.not_etags, current)


def _names(etags: frozenset[str], current: Versioned | None) -> bool:
    return current is not None and ("*" in etags or bool(etags & current.etags))


def from_query(query: Mapping[str, str], *, source: bool = False) -> Conditions:
    """Return the conditions of a JSON call.

    Names match in any letter case: the Python client writes one of them ``ifMetaGenerationNotMatch``.

    :param source: return ``ifSourceGenerationMatch`` and the other conditions of a copy's source instead.
    """
    stem = "ifsource" if source else "if"
    lowered = {key.lower(): value for key, value in query.items()}
    return Conditions(
        generation=_number(lowered, f"{stem}generationmatch"),
        not_generation=_number(lowered, f"{stem}generationnotmatch"),
        metageneration=_number(lowered, f"{stem}metagenerationmatch"),
        not_metageneration=_number(lowered, f"{stem}metagenerationnotmatch"),
    )


def from_request(query: Mapping[str, str], headers: Mapping[str, str]) -> Conditions:
    """Return the conditions of a call, including those in its headers (``If-Match``, ``x-goog-if-*``)."""
    asked = from_query(query)
    etags, not_etags = headers.get("If-Match"), headers.get("If-None-Match")
    generation = _number(headers, "x-goog-if-generation-match")
    metageneration = _number(headers, "x-goog-if-metageneration-match")
    return Conditions(
        generation=asked.generation if generation is None else generation,
        not_generation=asked.not_generation,
        metageneration=asked.metageneration if metageneration is None else metageneration,
        not_metageneration=asked.not_metageneration,
        etags=None if etags is None else read_etags(etags),
        not_etags=None if not_etags is None else read_etags(not_etags),
    )


def read_etags(header: str) -> frozenset[str]:
    """Split a list of entity tags, quoted or not (Cloud Storage accepts both)."""
    return frozenset(tag.strip().removeprefix("W/").strip('"') for tag in header.split(",") if tag.strip())


def _number(values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise bad_request(f"Invalid value for {key}: {text!r} is not a number.") from None


__all__ = ["Conditions", "StorageError", "from_query", "from_request", "read_etags"]
