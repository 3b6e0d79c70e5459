# SPDX-License-Identifier: Apache-2.0
"""Storage of records: one JSON object for each fingerprint in a bucket, or Airflow's task state store.

A write names the version that it replaces and raises :class:`RecordConflict` when another process has written since.
In a bucket that is ``ifGenerationMatch``. The task state store has no precondition; two processes of one task meet
there only when a running task is cleared, so reading before writing is enough.

``{prefix}/_tasks/`` holds one pointer for each task instance: the fingerprint that it asked for last, so that inputs
that render differently at the next try are noticed. ``{prefix}/_checks/`` holds objects that exist only while
:meth:`BucketJournal.check_writable` runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote
from uuid import uuid4

from airflow_provider_wan.durable.record import SCHEMA, Record, Stage
from airflow_provider_wan.exceptions import WanJournalError, WanRecordError, WanStorageError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, call_limits, split_gs_uri, storage_errors, upload

if TYPE_CHECKING:
    from google.cloud import storage


#: A listing counts the purchases of this many task instances; the record itself has all.
_MARKS = 100
_READ_THREADS, _READ_AT_ONCE = 16, 2000
_IN_MEMORY_BYTES = 4 * 1024 * 1024
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class RecordConflict(Exception):
    """Another process has written this record since it was read: read it again."""


@dataclass(frozen=True, slots=True)
class VersionedRecord:
    """A record, and the version (the generation of its object) that was read or written."""

    record: Record
    version: int = 0


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """A record as a listing contains it.

    :param uri: of the first landed video.
    :param size_bytes: of all its videos; None: it has none, or an older version wrote it.
    :param buyer: the task instance that made the latest purchase.
    :param watchers: how many task instances depend on the request.
    :param verdict: ``good`` or ``bad``, with the reasons; None: its videos were not checked.
    :param is_rejected: whether all its videos are in quarantine.
    :param purchases: the number of requests that each task instance (by :func:`mark_of`) bought for this fingerprint,
        including failed ones and those whose answer was lost.
    """

    fingerprint: str
    stage: Stage
    request_id: str | None = None
    cost_usd: float | None = None
    uri: str | None = None
    size_bytes: int | None = None
    submitted_at: str | None = None
    buyer: str | None = None
    watchers: int = 0
    purchases: Mapping[str, int] = field(default_factory=dict)
    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    is_rejected: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether its request ended without a video, so that another one may be bought."""
        return self.stage in (Stage.FAILED, Stage.CANCELLED)

    def bought_by(self, owner: str) -> int:
        """Return how many requests a task instance has bought for this fingerprint."""
        return self.purchases.get(mark_of(owner), 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are set as plain JSON values."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RecordSummary:
        """Read what :meth:`as_dict` returned."""
        given = {"stage": Stage(plain["stage"]), "reasons": tuple(plain.get("reasons") or ())}
        return cls(**{**plain, **given})


def mark_of(owner: str) -> str:
    """Return the short form of a task instance's name for listings, whose metadata is limited to 8 KiB."""
    return hashlib.sha256(owner.encode()).hexdigest()[:12]


class BucketJournal:
    """Records in a bucket, ``{prefix}/{fingerprint}.json``, shared by all runs and Dags.

    Body and metadata are always written together: a metadata patch does not change the generation, so another writer
    could overwrite it unnoticed.

    :param client: a Cloud Storage client.
    :param uri: ``gs://bucket/prefix``.
    """

    def __init__(self, client: storage.Client, uri: str) -> None:
        bucket, prefix = split_gs_uri(uri, name="journal")
        self.where = uri.rstrip("/")
        self._client = client
        self._bucket = client.bucket(bucket)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""

    def read(self, fingerprint: str) -> VersionedRecord | None:
        """Read the record of a fingerprint."""
        name = f"{fingerprint}.json"
        body, generation = self.read_object(name, what="the journal record ")
        if body is None:
            return None
        try:
            record = Record.from_json(body)
            if record.fingerprint != fingerprint:
                raise ValueError(f"it is about fingerprint {record.fingerprint}")
        except ValueError as error:
            raise WanRecordError(
                f"The journal record {self.uri_of(name)} can't be read: {error}. Nothing is bought "
                "while it exists. Correct it, or delete it if you are sure that nothing was bought."
            ) from error
        return VersionedRecord(record, generation)

    def read_each(self, fingerprints: Iterable[str]) -> Iterator[tuple[str, VersionedRecord | WanRecordError | None]]:
        """Read many records, some at a time; return each with its fingerprint, or the error of an unreadable one."""

        def read(fingerprint: str) -> tuple[str, VersionedRecord | WanRecordError | None]:
            try:
                return fingerprint, self.read(fingerprint)
            except WanRecordError as error:
                return fingerprint, error

        remaining = iter(fingerprints)
        with ThreadPoolExecutor(_READ_THREADS, "wan-read") as pool:
            while some := list(islice(remaining, _READ_AT_ONCE)):
                yield from pool.map(read, some)

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write a record.

        Cloud Storage allows about one update of an object a second; its 429 is retried like an outage.

        :param replaces: the version that it replaces; None: no record may exist.
        :raises RecordConflict: another version exists.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        name = f"{record.fingerprint}.json"
        with storage_errors(f"Writing the journal record {self.uri_of(name)}", request_id=record.request_id):
            try:
                generation = self._upload(
                    name,
                    record.to_json(),
                    replaces=replaces.version if replaces else 0,
                    metadata=_listing_metadata(record),
                )
            except PreconditionFailed:
                return self._own_write(record)
            except NotFound as error:
                if replaces is None:
                    raise
                raise RecordConflict from error  # the version that it replaces was deleted
        return VersionedRecord(record, generation)

    def _own_write(self, record: Record) -> VersionedRecord:
        """The client repeats a write whose acknowledgement was lost, and then finds its own record."""
        held = self.read(record.fingerprint)
        if held is None or not _is_same(held, VersionedRecord(record)):
            raise RecordConflict
        return held

    def forget(self, held: VersionedRecord) -> None:
        """Delete a record if it is still this version."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        name = f"{held.record.fingerprint}.json"
        blob = self._bucket.blob(self._prefix + name)
        with storage_errors(f"Deleting the journal record {self.uri_of(name)}"):
            try:
                blob.delete(if_generation_match=held.version, **call_limits())
            except (NotFound, PreconditionFailed):
                return

    def age_s(self, held: VersionedRecord) -> float:
        """Return how long ago a version was written, by the bucket's own clock: those of workers may differ."""
        name = f"{held.record.fingerprint}.json"
        endpoint = self._client.api_endpoint or "https://storage.googleapis.com"
        path = f"b/{self._bucket.name}/o/{quote(self._prefix + name, safe='')}"
        url = f"{endpoint}/storage/v1/{path}?fields=generation,updated"
        with storage_errors(f"Reading the journal record {self.uri_of(name)}"):
            response = self._client._http.request("GET", url, timeout=TIMEOUT_S[1])
            about: dict[str, Any] = response.json() if response.ok else {}
        if int(about.get("generation", 0)) != held.version or "Date" not in response.headers:
            return 0.0
        updated = datetime.fromisoformat(about["updated"])
        return (parsedate_to_datetime(response.headers["Date"]) - updated).total_seconds()

    def check_writable(self) -> None:
        """Create, overwrite and delete an object of its own under ``_checks/``.

        :raises WanJournalError: a permission, a retention policy or a hold forbids it.
        :raises WanStorageError: the bucket can't be reached.
        """
        from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed, Unauthorized

        name, generation = f"_checks/{uuid4().hex}", 0
        what = f"Checking that the journal {self.where} can be written"
        try:
            with storage_errors(what):
                for _ in ("create", "overwrite"):
                    with suppress(PreconditionFailed):  # a repeated write whose acknowledgement was lost
                        generation = self._upload(name, "{}", replaces=generation)
                with suppress(NotFound):
                    self._bucket.blob(self._prefix + name).delete(**call_limits())
        except WanStorageError as error:
            if not isinstance(error.__cause__, Forbidden | Unauthorized | NotFound):
                raise
            raise WanJournalError(
                f"The journal {self.where} can't be written as it must be: {error} Nothing was bought. A record is "
                "created, then overwritten with the request id: that needs storage.objects.create, get and delete "
                "(roles/storage.objectUser) and a bucket without retention policy and object holds on this prefix."
            ) from error.__cause__

    def former_record(self, owner: str, image: str | None, fingerprint: str) -> VersionedRecord | None:
        """Return the record that this task instance asked for last, if it is of another fingerprint of this image.

        After an upstream change a map index can mean another image, whose request is left alone.
        """
        try:
            pointer, _ = self.read_json(self._pointer_name(owner))
        except ValueError:
            return None
        if pointer is None or (pointer.get("owner"), pointer.get("image")) != (owner, image):
            return None
        former = str(pointer.get("fingerprint"))
        return self.read(former) if former != fingerprint and _FINGERPRINT.fullmatch(former) else None

    def point_to(self, owner: str, image: str | None, fingerprint: str) -> None:
        """Record which fingerprint a task instance asks for."""
        pointer = {"schema": SCHEMA, "owner": owner, "image": image, "fingerprint": fingerprint}
        self.write_json(self._pointer_name(owner), pointer)

    def read_json(self, name: str) -> tuple[dict[str, Any] | None, int]:
        """Read an object in a subfolder, where no listing finds it, and its generation; ``(None, 0)``: it is missing.

        :raises ValueError: it is not a JSON object.
        """
        text, generation = self.read_object(name)
        if text is None:
            return None, 0
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError(f"{self.uri_of(name)} is not a JSON object")
        return body, generation

    def write_json(self, name: str, body: Mapping[str, Any], *, replaces: int | None = None) -> bool:
        """Write such an object.

        :param replaces: the generation that it replaces, 0: none may exist; None (default): any.
        :return: False if another generation exists.
        """
        from google.api_core.exceptions import PreconditionFailed

        with storage_errors(f"Writing {self.uri_of(name)}"):
            try:
                self._upload(name, json.dumps(body), replaces=replaces)
            except PreconditionFailed:
                return self.read_json(name)[0] == body  # written by an earlier attempt of this call
        return True

    def _pointer_name(self, owner: str) -> str:
        return f"_tasks/{hashlib.sha256(owner.encode()).hexdigest()}.json"

    def open_claims(self) -> Iterator[VersionedRecord]:
        """Read every record that is a claim without a request id."""
        for summary in self.listing():
            if summary.stage is Stage.INTENT:
                versioned = self.read(summary.fingerprint)
                if versioned is not None and versioned.record.request_id is None:
                    yield versioned

    def fingerprint_of(self, request_id: str) -> str | None:
        """Return the fingerprint whose record holds a request."""
        return next((each.fingerprint for each in self.listing() if each.request_id == request_id), None)

    def listing(self) -> Iterator[RecordSummary]:
        """List the records, a thousand a call, without reading them."""
        for blob in self._list("metadata"):
            summary = _summary(blob.name.removeprefix(self._prefix), blob.metadata or {})
            if summary is not None:
                yield summary

    def generations(self) -> Iterator[tuple[str, int, str]]:
        """List fingerprint, generation and time of the submit of each record, to find those that have changed.

        The time is in ISO 8601; it is empty where the listing does not have it.
        """
        for blob in self._list("generation,metadata/submitted_at"):
            name = blob.name.removeprefix(self._prefix).removesuffix(".json")
            if _FINGERPRINT.fullmatch(name):
                yield name, int(blob.generation), (blob.metadata or {}).get("submitted_at", "")

    # -- objects -------------------------------------------------------------------------------------------

    def uri_of(self, name: str) -> str:
        """Return the address of an object."""
        return f"gs://{self._bucket.name}/{self._prefix}{name}"

    def _list(self, field_name: str) -> Iterator[storage.Blob]:
        with storage_errors(f"Listing the journal {self.where}"):
            yield from self._client.list_blobs(
                self._bucket,
                prefix=self._prefix,
                delimiter="/",
                fields=f"items(name,{field_name}),nextPageToken",
                **call_limits(),
            )

    def read_object(self, name: str, *, what: str = "") -> tuple[bytes | None, int]:
        """Return the content of an object and its generation; ``(None, 0)``: it is missing."""
        from google.api_core.exceptions import NotFound

        blob = self._bucket.blob(self._prefix + name)
        with storage_errors(f"Reading {what}{self.uri_of(name)}"):
            try:
                body: bytes = blob.download_as_bytes(**call_limits())
            except NotFound:
                return None, 0
        return body, int(blob.generation)

    def write_lines(self, name: str, lines: Iterable[str], *, retry_for_s: float | None = None) -> None:
        """Write an object in a subfolder, line by line, in place of any other.

        :param retry_for_s: for how long the call is retried, in seconds; None (default): as usual.
        """
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
            for line in lines:
                file.write(line.encode() + b"\n")
            size = file.tell()
            blob = self._bucket.blob(self._prefix + name)
            with storage_errors(f"Writing {self.uri_of(name)}"):
                upload(
                    blob,
                    file,
                    size_bytes=size,
                    content_type="application/x-ndjson",
                    retry_for_s=retry_for_s,
                )

    def _upload(self, name: str, body: str, *, replaces: int | None, metadata: Mapping[str, str] | None = None) -> int:
        """Write an object, and return its generation.

        :raises PreconditionFailed: another generation exists than the one that it replaces.
        """
        blob = self._bucket.blob(self._prefix + name)
        blob.cache_control = "no-store"  # a public bucket would serve an hour-old copy
        if metadata is not None:
            blob.metadata = metadata
        upload(blob, body.encode(), content_type="application/json", if_generation_match=replaces)
        return int(blob.generation)


class TrackedJournal(BucketJournal):
    """A journal that keeps the summary of each record that it has read or written."""

    def __init__(self, client: storage.Client, uri: str) -> None:
        super().__init__(client, uri)
        #: By fingerprint; None: there is no record.
        self.latest: dict[str, RecordSummary | None] = {}

    def read(self, fingerprint: str) -> VersionedRecord | None:
        """Read the record of a fingerprint."""
        found = super().read(fingerprint)
        self.latest[fingerprint] = as_listed(found.record) if found else None
        return found

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write a record; see :meth:`BucketJournal.write`."""
        written = super().write(record, replaces=replaces)
        self.latest[record.fingerprint] = as_listed(record)
        return written

    def forget(self, held: VersionedRecord) -> None:
        """Delete a record if it is still this version."""
        super().forget(held)
        self.latest[held.record.fingerprint] = None


def _listing_metadata(record: Record) -> dict[str, str]:
    """Return the object metadata, so that a listing is enough for a plan."""
    purchases = Counter(mark_of(buyer) for buyer in (*record.earlier_buyers, record.buyer) if buyer)
    return {
        "stage": str(record.stage),
        "request_id": record.request_id or "",
        "cost_usd": "" if record.cost_usd is None else str(record.cost_usd),
        "uri": record.videos[0].uri if record.videos else "",
        "size_bytes": str(sum(video.size_bytes for video in record.videos)) if record.videos else "",
        "submitted_at": record.submitted_at or "",
        "buyer": record.buyer,
        "watchers": str(len(record.watchers)),
        "purchases": " ".join(f"{mark}:{count}" for mark, count in purchases.most_common(_MARKS)),
        **({"verdict": record.verdict, "reasons": json.dumps(record.reasons)} if record.verdict else {}),
        **({"rejected": "true"} if record.is_rejected else {}),
    }


def as_listed(record: Record) -> RecordSummary | None:
    """Return the summary that a listing would contain."""
    return _summary(f"{record.fingerprint}.json", _listing_metadata(record))


def _summary(name: str, metadata: dict[str, str]) -> RecordSummary | None:
    fingerprint = name.removesuffix(".json")
    if fingerprint == name:
        return None
    cost = metadata.get("cost_usd")
    purchases = (each.partition(":") for each in metadata.get("purchases", "").split())
    size = metadata.get("size_bytes", "")
    try:
        return RecordSummary(
            fingerprint=fingerprint,
            stage=Stage(metadata["stage"]),
            request_id=metadata.get("request_id") or None,
            cost_usd=float(cost) if cost else None,
            uri=metadata.get("uri") or None,
            size_bytes=int(size) if size.isdigit() else None,
            submitted_at=metadata.get("submitted_at") or None,
            buyer=metadata.get("buyer") or None,
            watchers=int(metadata.get("watchers") or 0),
            purchases={mark: int(count) for mark, _, count in purchases if count.isdigit()},
            verdict=metadata.get("verdict") or None,
            reasons=tuple(json.loads(metadata.get("reasons") or "[]")),
            is_rejected=metadata.get("rejected") == "true",
        )
    except (KeyError, ValueError):
        # The metadata is missing or broken, but there is a record: it must be read.
        return RecordSummary(fingerprint, Stage.INTENT) if _FINGERPRINT.fullmatch(fingerprint) else None


class TaskStateJournal:
    """The records of one task of one run in Airflow's task state store (3.3 and later).

    They survive a retry and a clear; other runs do not see them. ``KEY`` holds the record of the latest fingerprint,
    ``KEY.<fingerprint>`` those that the task asked for before its inputs changed.

    :param task_state_store: ``context["task_state_store"]``.
    """

    KEY = "airflow_provider_wan.request"
    #: The clocks of two workers may differ by this, in seconds; a younger claim never counts as old.
    CLOCK_SKEW_S = 600.0
    #: A value may have 64 KiB. A larger record is kept without its inputs, which no decision needs.
    MAX_CHARS = 60_000

    where = "Airflow's task state store"

    def __init__(self, task_state_store: Any) -> None:
        self._store = task_state_store
        self._displaced: Record | None = None

    def read(self, fingerprint: str) -> VersionedRecord | None:
        """Read this task's record of a fingerprint."""
        latest = self._read(self.KEY)
        if latest is None or latest.record.fingerprint == fingerprint:
            return latest
        return self._read(self._key(fingerprint))

    def _read(self, key: str) -> VersionedRecord | None:
        with _store_errors("Reading"):
            plain = self._store.get(key)
        if plain is None:
            return None
        try:
            if not isinstance(plain, dict):
                raise ValueError("not a record: not a JSON object")
            return VersionedRecord(Record.from_dict(plain))
        except ValueError as error:
            raise WanRecordError(
                f"The record {key!r} in {self.where} can't be read: {error}. Nothing is bought while it exists. "
                "Delete it if you are sure that nothing was bought."
            ) from error

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write the record of a fingerprint, and make it the latest."""
        if len(json.dumps(record.as_dict())) > self.MAX_CHARS:
            record = replace(record, inputs={})
        current = self.read(record.fingerprint)
        if current is not None and _is_same(current, VersionedRecord(record)):
            return current
        if not _is_same(current, replaces):
            raise RecordConflict
        latest = self._read(self.KEY)
        with _store_errors("Writing", request_id=record.request_id):
            if latest is not None and latest.record.fingerprint != record.fingerprint:
                self._displaced = latest.record
                self._set(self._key(latest.record.fingerprint), latest.record)
            self._set(self.KEY, record)
        return VersionedRecord(record)

    def _key(self, fingerprint: str) -> str:
        return f"{self.KEY}.{fingerprint}"

    def _set(self, key: str, record: Record) -> None:
        try:
            from airflow.sdk.execution_time.context import NEVER_EXPIRE
        except ImportError:  # before 3.3.1 there was only the global retention
            self._store.set(key, record.as_dict())
        else:
            self._store.set(key, record.as_dict(), retention=NEVER_EXPIRE)

    def forget(self, held: VersionedRecord) -> None:
        """Delete a record if it is still this one; the record before it becomes the latest again."""
        for key in (self.KEY, self._key(held.record.fingerprint)):
            if not _is_same(self._read(key), held):
                continue
            with _store_errors("Deleting"):
                if key == self.KEY and self._displaced is not None:
                    self._set(key, self._displaced)
                else:
                    self._store.delete(key)

    def check_writable(self) -> None:
        """Do nothing: Airflow's store has neither permissions nor retention of its own."""

    def former_record(self, owner: str, image: str | None, fingerprint: str) -> VersionedRecord | None:
        """Return this task's latest record, if it is of another fingerprint of the same image."""
        latest = self._read(self.KEY)
        if latest is None or latest.record.fingerprint == fingerprint or latest.record.image != image:
            return None
        return latest

    def point_to(self, owner: str, image: str | None, fingerprint: str) -> None:
        """Do nothing: the latest record is the pointer."""

    def open_claims(self) -> Iterator[VersionedRecord]:
        """Yield this task's latest record, if it is a claim without a request id."""
        latest = self._read(self.KEY)
        if latest is not None and latest.record.request_id is None:
            yield latest

    def fingerprint_of(self, request_id: str) -> str | None:
        """Return the fingerprint of this task's latest record, if it holds the request."""
        latest = self._read(self.KEY)
        return latest.record.fingerprint if latest is not None and latest.record.request_id == request_id else None

    def age_s(self, held: VersionedRecord) -> float:
        """Return the age by the worker's clock, or 0 where a skewed clock could matter."""
        if held.record.claimed_at is None:
            return 0.0
        age_s = time.time() - datetime.fromisoformat(held.record.claimed_at).astimezone(UTC).timestamp()
        return age_s if age_s > self.CLOCK_SKEW_S else 0.0


def _is_same(one: VersionedRecord | None, other: VersionedRecord | None) -> bool:
    texts = [held and json.dumps(held.record.as_dict(), sort_keys=True) for held in (one, other)]
    return texts[0] == texts[1]


@contextmanager
def _store_errors(doing: str, *, request_id: str | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Airflow's own errors, and those of the connection to its API server
        raise WanStorageError(
            f"{doing} the record in {TaskStateJournal.where} failed: {type(error).__name__}: {str(error)[:300]}",
            request_id=request_id,
        ) from error


#: Storage of records.
Journal: TypeAlias = BucketJournal | TaskStateJournal
