# SPDX-License-Identifier: Apache-2.0
"""Where records live: one JSON object a fingerprint in a bucket, or Airflow's task state store.

Both keep the same promise to ``submission.py``: a write says which version it replaces, and is lost
(:class:`RecordConflict`) when somebody else has written in between. In a bucket that is an ``ifGenerationMatch``. The
task state store has nothing like it, and hardly needs it: two processes of one task meet there only where a running
task is cleared, so looking before writing is enough.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import WanRecordError, WanStorageError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, split_gs_uri, storage_errors

if TYPE_CHECKING:
    from google.cloud import storage


#: So many task instances are told apart in a listing; the record itself knows all.
_MARKS = 100
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class RecordConflict(Exception):
    """Somebody else wrote this record in between: look again."""


@dataclass(frozen=True, slots=True)
class VersionedRecord:
    """A record as it was read or written, and which version of it that is."""

    record: Record
    version: int = 0


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What a listing tells of a record.

    :param uri: of the first video that has landed.
    :param size_bytes: of all its videos; None: it has none, or was written before listings told it.
    :param buyer: the task instance that made the latest purchase.
    :param watchers: how many task instances count on the request.
    :param purchases: how many requests each task instance has bought for this fingerprint, by :func:`mark_of`, failed
        ones and those whose answer was lost included.
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

    def bought_by(self, watcher: str) -> int:
        """Tell how many requests a task instance has bought for this fingerprint."""
        return self.purchases.get(mark_of(watcher), 0)


def mark_of(watcher: str) -> str:
    """Give the short form of a task instance's name in listings, whose metadata may have 8 KiB."""
    return hashlib.sha256(watcher.encode()).hexdigest()[:12]


class Journal(Protocol):
    """Where records live."""

    where: str

    def read(self, fingerprint: str) -> VersionedRecord | None:
        """Read the record of a fingerprint."""

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write a record.

        :param replaces: the version that it replaces; None: there must be none.
        :raises RecordConflict: there is another version.
        """

    def forget(self, held: VersionedRecord) -> None:
        """Delete a record, if it is still the one that is held."""

    def age_s(self, held: VersionedRecord) -> float:
        """Tell how long ago, at least, this version was written, in seconds."""


class BucketJournal:
    """Records in a bucket, ``{prefix}/{fingerprint}.json``: for every run, of every Dag, at once.

    Body and metadata are always written together: a metadata patch would leave the generation as it was, and
    a writer who holds that generation would overwrite it unseen.

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
        from google.api_core.exceptions import NotFound

        blob = self._bucket.blob(self._name(fingerprint))
        with storage_errors(f"Reading the journal record {self._uri(fingerprint)}"):
            try:
                body = blob.download_as_bytes(timeout=TIMEOUT_S, retry=retry_policy())
            except NotFound:
                return None
        try:
            record = Record.from_json(body)
            if record.fingerprint != fingerprint:
                raise ValueError(f"it is about fingerprint {record.fingerprint}")
        except ValueError as error:
            raise WanRecordError(
                f"The journal record {self._uri(fingerprint)} can't be read: {error}. Nothing is bought "
                "while it stands there; put it right, or delete it if you are sure that nothing was bought."
            ) from error
        return VersionedRecord(record, int(blob.generation))

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write a record in place of the version that is held.

        An object takes about one update a second; the 429 that says so is retried like an outage is.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._bucket.blob(self._name(record.fingerprint))
        blob.cache_control = "no-store"  # in a bucket that is public, an hour-old copy would be served
        blob.metadata = _shown_in_listings(record)
        body = record.to_json().encode()
        with storage_errors(
            f"Writing the journal record {self._uri(record.fingerprint)}", request_id=record.request_id
        ):
            try:
                blob.upload_from_string(
                    body,
                    content_type="application/json",
                    if_generation_match=replaces.version if replaces else 0,
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            except PreconditionFailed:
                return self._mine_after_all(record)
            except NotFound as error:
                if replaces is None:
                    raise
                raise RecordConflict from error  # the version that it replaces was deleted
        return VersionedRecord(record, int(blob.generation))

    def _mine_after_all(self, record: Record) -> VersionedRecord:
        """A write whose acknowledgement got lost is repeated by the client, and meets itself."""
        held = self.read(record.fingerprint)
        if _is_same(held, VersionedRecord(record)):
            assert held is not None
            return held
        raise RecordConflict

    def forget(self, held: VersionedRecord) -> None:
        """Delete a record, if it is still the one that is held."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        fingerprint = held.record.fingerprint
        blob = self._bucket.blob(self._name(fingerprint))
        with storage_errors(f"Deleting the journal record {self._uri(fingerprint)}"):
            try:
                blob.delete(if_generation_match=held.version, timeout=TIMEOUT_S, retry=retry_policy())
            except (NotFound, PreconditionFailed):
                return

    def age_s(self, held: VersionedRecord) -> float:
        """Tell the age by the bucket's own clock alone: the workers' clocks may differ."""
        name = quote(self._name(held.record.fingerprint), safe="")
        endpoint = self._client.api_endpoint or "https://storage.googleapis.com"
        url = f"{endpoint}/storage/v1/b/{self._bucket.name}/o/{name}?fields=generation,updated"
        with storage_errors(f"Reading the journal record {self._uri(held.record.fingerprint)}"):
            response = self._client._http.request("GET", url, timeout=TIMEOUT_S[1])
            about: dict[str, Any] = response.json() if response.ok else {}
        if int(about.get("generation", 0)) != held.version or "Date" not in response.headers:
            return 0.0
        updated = datetime.fromisoformat(about["updated"])
        return (parsedate_to_datetime(response.headers["Date"]) - updated).total_seconds()

    def stages(self) -> Iterator[tuple[str, Stage]]:
        """List what is there, by pages: fingerprint and stage, without reading a single record."""
        for listed in self.listing():
            yield listed.fingerprint, listed.stage

    def listing(self) -> Iterator[RecordSummary]:
        """List what is there, a thousand records a call, without reading a single one."""
        with storage_errors(f"Listing the journal {self.where}"):
            for blob in self._client.list_blobs(
                self._bucket,
                prefix=self._prefix,
                delimiter="/",
                fields="items(name,metadata),nextPageToken",
                timeout=TIMEOUT_S,
                retry=retry_policy(),
            ):
                listed = _listed(blob.name.removeprefix(self._prefix), blob.metadata or {})
                if listed is not None:
                    yield listed

    def _name(self, fingerprint: str) -> str:
        return f"{self._prefix}{fingerprint}.json"

    def _uri(self, fingerprint: str) -> str:
        return f"gs://{self._bucket.name}/{self._name(fingerprint)}"


def _shown_in_listings(record: Record) -> dict[str, str]:
    """Give what a listing should tell, so that nobody needs to read each record for it."""
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
    }


def as_listed(record: Record) -> RecordSummary | None:
    """Give what a listing would tell of a record."""
    return _listed(f"{record.fingerprint}.json", _shown_in_listings(record))


def _listed(name: str, metadata: dict[str, str]) -> RecordSummary | None:
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
        )
    except (KeyError, ValueError):
        # The metadata is lost or broken: the record must be read, and is not nothing.
        return RecordSummary(fingerprint, Stage.INTENT) if _FINGERPRINT.fullmatch(fingerprint) else None


class TaskStateJournal:
    """The record of one run's task in Airflow's task state store (3.3 and later).

    It survives a retry and a clear, and knows nothing of other runs. It holds one record, of whatever the
    task asked for last: a changed task meets the record of its former self.

    :param task_state_store: ``context["task_state_store"]``.
    """

    KEY = "airflow_provider_wan.request"
    #: Two workers' clocks may differ by this; a claim younger than that is never believed to be old.
    CLOCK_SKEW_S = 600.0
    #: A value may have 64 KiB. What is larger is remembered without its inputs, which nothing rests on.
    MAX_CHARS = 60_000

    where = "Airflow's task state store"

    def __init__(self, task_state_store: Any) -> None:
        self._store = task_state_store

    def read(self, fingerprint: str) -> VersionedRecord | None:
        """Read this task's record, whatever fingerprint it has."""
        with _store_errors("Reading"):
            plain = self._store.get(self.KEY)
        if plain is None:
            return None
        try:
            if not isinstance(plain, dict):
                raise ValueError("not a record: not a JSON object")
            return VersionedRecord(Record.from_dict(plain))
        except ValueError as error:
            raise WanRecordError(
                f"The record {self.KEY!r} in {self.where} can't be read: {error}. Nothing is bought while it stands "
                "there; delete it if you are sure that nothing was bought."
            ) from error

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        """Write this task's record."""
        if len(json.dumps(record.as_dict())) > self.MAX_CHARS:
            record = replace(record, inputs={})
        there = self.read(record.fingerprint)
        if there is not None and _is_same(there, VersionedRecord(record)):
            return there
        if not _is_same(there, replaces):
            raise RecordConflict
        with _store_errors("Writing", request_id=record.request_id):
            self._set(record.as_dict())
        return VersionedRecord(record)

    def _set(self, plain: dict[str, Any]) -> None:
        try:
            from airflow.sdk.execution_time.context import NEVER_EXPIRE
        except ImportError:  # before 3.3.1 there was only the global retention
            self._store.set(self.KEY, plain)
        else:
            self._store.set(self.KEY, plain, retention=NEVER_EXPIRE)

    def forget(self, held: VersionedRecord) -> None:
        """Delete this task's record, if it is still the one that is held."""
        if _is_same(self.read(held.record.fingerprint), held):
            with _store_errors("Deleting"):
                self._store.delete(self.KEY)

    def age_s(self, held: VersionedRecord) -> float:
        """Tell the age by the worker's clock, which is believed only where it can't matter."""
        if held.record.claimed_at is None:
            return 0.0
        age_s = time.time() - datetime.fromisoformat(held.record.claimed_at).astimezone(UTC).timestamp()
        return age_s if age_s > self.CLOCK_SKEW_S else 0.0


def _is_same(one: VersionedRecord | None, other: VersionedRecord | None) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(held: VersionedRecord | None) -> str | None:
    return None if held is None else json.dumps(held.record.as_dict(), sort_keys=True)


@contextmanager
def _store_errors(doing: str, *, request_id: str | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Airflow's own errors, and those of the connection to its API server
        raise WanStorageError(
            f"{doing} the record in {TaskStateJournal.where} failed: {type(error).__name__}: {str(error)[:300]}",
            request_id=request_id,
        ) from error
