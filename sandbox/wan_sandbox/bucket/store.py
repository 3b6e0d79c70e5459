# SPDX-License-Identifier: Apache-2.0
"""Buckets and objects in memory: the only module that changes them.

Every method runs to its end without awaiting, so that in the event loop a condition and the write that
depends on it are one step: of two writers with ``ifGenerationMatch=0`` exactly one succeeds.
"""

from __future__ import annotations

import base64
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from wan_sandbox.bucket.conditions import Conditions
from wan_sandbox.bucket.content import Content, ContentStore
from wan_sandbox.bucket.errors import (
    StorageError,
    bad_request,
    mutation_rate,
    no_such_bucket,
    no_such_object,
)

WRITABLE_FIELDS = (
    "contentType",
    "contentEncoding",
    "contentDisposition",
    "contentLanguage",
    "cacheControl",
    "customTime",
    "storageClass",
    "metadata",
)
"""What a client may say about an object; everything else is the server's."""

_NO_FIELDS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One generation of an object, at one metageneration."""

    bucket: str
    name: str
    content: Content
    generation: int
    created_at: datetime
    updated_at: datetime
    metageneration: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    component_count: int | None = None

    @property
    def etag(self) -> str:
        """The tag of this version of the object."""
        return base64.b64encode(f"{self.generation}/{self.metageneration}".encode()).decode()

    @property
    def etags(self) -> frozenset[str]:
        """Every tag that a condition may use for this object; public links use the MD5."""
        return frozenset({self.etag, self.public_etag})

    @property
    def public_etag(self) -> str:
        """The tag of the XML API: the MD5 in hex, if there is one."""
        return base64.b64decode(self.content.md5).hex() if self.content.md5 else self.etag


class Bucket:
    """One bucket: its objects by name, and the sorted names."""

    def __init__(self, name: str, *, public: bool, fields: Mapping[str, Any], generation: int) -> None:
        self.name = name
        self.public = public
        self.fields = dict(fields)
        self.generation = generation
        self.metageneration = 1
        self.created_at = self.updated_at = datetime.now(UTC)
        self.objects: dict[str, StoredObject] = {}
        self.names: list[str] = []  # sorted, so that a page of a listing costs the same in a large bucket
        self.writes: Counter[str] = Counter()  # kept after a delete: how often each name was written
        self.changed_at: dict[str, float] = {}

    @property
    def etags(self) -> frozenset[str]:
        """The tags that a condition may use for this bucket."""
        return frozenset({base64.b64encode(str(self.metageneration).encode()).decode()})

    def get(self, name: str, generation: int | None = None) -> StoredObject:
        """Return the live object.

        :raises StorageError: 404, also if the live object has another generation.
        """
        found = self.objects.get(name)
        if found is None or (generation is not None and generation != found.generation):
            raise no_such_object(self.name, name)
        return found

    def put(self, stored: StoredObject) -> None:
        """Make this object the live one of its name."""
        if stored.name not in self.objects:
            insort(self.names, stored.name)
        self.objects[stored.name] = stored

    def drop(self, name: str) -> None:
        """Remove the live object of this name."""
        del self.objects[name]
        del self.names[bisect_left(self.names, name)]


class Store:
    """All buckets of one emulator.

    :param public: default for whether a bucket serves anonymous reads of its links.
    :param write_interval_s: minimum time between two changes of one object, else 429; 0 is no limit. Cloud Storage
        accepts about one per second.
    """

    def __init__(self, *, public: bool = True, write_interval_s: float = 0.0) -> None:
        self.public = public
        self.write_interval_s = write_interval_s
        self.contents = ContentStore()
        self.buckets: dict[str, Bucket] = {}
        self._last_generation = 0

    def next_generation(self) -> int:
        """Return a number that is larger than any before: microseconds, as in Cloud Storage."""
        self._last_generation = max(time.time_ns() // 1000, self._last_generation + 1)
        return self._last_generation

    def bucket(self, name: str) -> Bucket:
        """Return a bucket.

        :raises StorageError: 404.
        """
        try:
            return self.buckets[name]
        except KeyError:
            raise no_such_bucket(name) from None

    def create_bucket(
        self, name: str, *, public: bool | None = None, fields: Mapping[str, Any] | None = None
    ) -> Bucket:
        """Create a bucket.

        :raises StorageError: 409 if it already exists.
        """
        if name in self.buckets:
            raise StorageError(409, "conflict", "Your previous request to create the named bucket succeeded.")
        made = Bucket(
            name,
            public=self.public if public is None else public,
            fields=fields or {},
            generation=self.next_generation(),
        )
        self.buckets[name] = made
        return made

    def delete_bucket(self, name: str) -> None:
        """Remove a bucket.

        :raises StorageError: 409 if it contains objects.
        """
        if self.bucket(name).objects:
            raise StorageError(409, "conflict", "The bucket you tried to delete is not empty.")
        del self.buckets[name]

    def commit(
        self,
        bucket: str,
        name: str,
        content: Content,
        *,
        conditions: Conditions,
        fields: Mapping[str, Any] = _NO_FIELDS,
        component_count: int | None = None,
        interval_s: float = 0.0,
    ) -> StoredObject:
        """Make content the live object of a name if its conditions hold.

        :param interval_s: a rate limit for changes that applies to this call, like ``write_interval_s``.
        :raises StorageError: 404, 412 or 429; nothing was changed.
        """
        home = self.bucket(bucket)
        conditions.check(home.objects.get(name))
        self.note_change(home, name, interval_s)
        now = datetime.now(UTC)
        stored = StoredObject(
            bucket=bucket,
            name=name,
            content=content,
            generation=self.next_generation(),
            created_at=now,
            updated_at=now,
            fields=merged({}, fields),
            component_count=component_count,
        )
        home.put(stored)
        home.writes[name] += 1
        return stored

    def change_fields(
        self, stored: StoredObject, changes: Mapping[str, Any], *, interval_s: float = 0.0
    ) -> StoredObject:
        """Change metadata: the metageneration changes, the generation does not.

        :param changes: new values; None removes one, and within ``metadata`` one key.
        """
        home = self.bucket(stored.bucket)
        self.note_change(home, stored.name, interval_s)
        changed = replace(
            stored,
            fields=merged(stored.fields, writable(changes)),
            metageneration=stored.metageneration + 1,
            updated_at=datetime.now(UTC),
        )
        home.put(changed)
        return changed

    def delete(self, stored: StoredObject, *, interval_s: float = 0.0) -> None:
        """Remove a live object."""
        home = self.bucket(stored.bucket)
        self.note_change(home, stored.name, interval_s)
        home.drop(stored.name)

    def note_change(self, home: Bucket, name: str, interval_s: float) -> None:
        """Record when a name was changed, and refuse a change that follows too soon."""
        limit, now = max(interval_s, self.write_interval_s), time.monotonic()
        before = home.changed_at.get(name)
        if limit and before is not None and now - before < limit:
            raise mutation_rate(home.name, name)
        home.changed_at[name] = now

    def seed(
        self,
        bucket: str,
        objects: Mapping[str, Mapping[str, Any]],
        content: Content,
        own: Mapping[str, Content] | None = None,
    ) -> int:
        """Create many objects quickly; existing names are kept.

        :param objects: names, each with its fields.
        :param content: of all objects.
        :param own: other contents, by name.
        """
        home = self.buckets.get(bucket) or self.create_bucket(bucket)
        now, count = datetime.now(UTC), 0
        for name, fields in objects.items():
            if name in home.objects:
                continue
            generation = self.next_generation()
            home.objects[name] = StoredObject(
                bucket, name, (own or {}).get(name, content), generation, now, now, 1, fields
            )
            home.writes[name] += 1
            count += 1
        home.names = sorted(home.objects)
        return count

    def reset(self) -> None:
        """Delete all buckets and objects."""
        self.buckets.clear()
        self.contents.close()


def writable(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an object resource that a client may set.

    :raises StorageError: 400 if ``metadata`` is not a mapping of strings.
    """
    given = {key: resource[key] for key in WRITABLE_FIELDS if key in resource}
    metadata = given.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise bad_request("metadata must be an object of strings.")
        given["metadata"] = {str(key): value if value is None else str(value) for key, value in metadata.items()}
    return given


def merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a patch: None removes, ``metadata`` is merged key by key."""
    result = dict(old)
    for key, value in changes.items():
        if key == "metadata" and value is not None:
            value = {**(old.get("metadata") or {}), **value}
            value = {name: text for name, text in value.items() if text is not None}
        result[key] = value
    return {key: value for key, value in result.items() if value is not None}
