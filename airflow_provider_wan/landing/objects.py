# SPDX-License-Identifier: Apache-2.0
"""The objects of a landing: their names and metadata, how a video is written, and the record next to the first."""

from __future__ import annotations

import contextlib
import json
import posixpath
import time
from dataclasses import dataclass, replace
from logging import Logger
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_provider_wan.durable.reconcile import with_result
from airflow_provider_wan.durable.record import QUARANTINE, LandedVideo, Record, Stage
from airflow_provider_wan.exceptions import WanConflictError, WanError, WanStorageError
from airflow_provider_wan.hooks.gcs import (
    META_REQUEST,
    call_limits,
    check_object_name,
    storage_errors,
    upload,
)
from airflow_provider_wan.http.fetch import Download
from airflow_provider_wan.landing.inspector import Inspection

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.hooks.wan import WanHook

CONTENT_TYPE = "video/mp4"
IfExists = Literal["skip", "overwrite", "fail"]
META_INDEX, META_COUNT = "wan-video-index", "wan-video-count"
META_MODEL, META_FINGERPRINT = "wan-model-id", "wan-fingerprint"
#: Facts and verdict as JSON, so that a later task finds them without reading the video.
META_FACTS, META_VERDICT = "wan-facts", "wan-verdict"
META_SOURCE_TYPE, META_GENERATED_AT = "wan-digital-source-type", "wan-generated-at"
#: "Created using a model trained on sampled content": IPTC's vocabulary, which C2PA uses too.
AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
#: For how long one call of an upload is retried, in seconds.
UPLOAD_RETRY_FOR_S = 300.0
#: The most that one copy inside Cloud Storage may take, in seconds; between locations it takes several calls.
COPY_FOR_S = 1800.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the videos of one request go.

    :param object_name: name of the first video; one that ends with ``/`` gets ``{request_id}.mp4``. The
        second and third get ``-2``, ``-3`` before the suffix.
    :param take: the number of the take, from 1: only an accepted one gets the name itself, and in quarantine the others
        get ``-take2``, ``-take3`` before the suffix.
    :param if_exists: what to do if another object has that name: ``skip`` (only the same request or the same bytes
        count as landed; anything else raises), ``overwrite`` (at the generation that was read), or ``fail`` (raises
        unless it is this request's).
    """

    bucket_name: str
    object_name: str
    if_exists: IfExists = "skip"
    take: int = 1

    def name_of(self, index: int, request_id: str, *, is_rejected: bool = False) -> str:
        """Return the object name of a video.

        :param index: from 0.
        :param is_rejected: whether it lands in quarantine, which is a folder beside the accepted ones.
        """
        name = self.object_name
        if name.endswith("/") or not name:
            name += f"{request_id}.mp4"
        stem, suffix = posixpath.splitext(name)
        stem += f"-{index + 1}" if index else ""
        stem += f"-take{self.take}" if is_rejected and self.take > 1 else ""
        name = f"{stem}{suffix}"
        if is_rejected:
            name = posixpath.join(posixpath.dirname(name), QUARANTINE, posixpath.basename(name))
        return check_object_name(name)


def get_blob(client: storage.Client, bucket: str, name: str) -> storage.Blob | None:
    """Return an object with its metadata, or None if it does not exist.

    :raises WanStorageError: the bucket does not answer, or refuses.
    """
    with storage_errors(f"Looking for gs://{bucket}/{name}"):
        return client.bucket(bucket).get_blob(name, **call_limits())


class VideoNames:
    """The names of the videos of one request, and the objects that have them; each is looked up once.

    :param client: a Cloud Storage client.
    :param destination: the names, and what may be replaced.
    :param are_free: whether no object had these names a while ago: then none is looked up.
    :raises WanInputError: no object may have such a name.
    """

    def __init__(
        self, client: storage.Client, request_id: str, destination: Destination, *, are_free: bool = False
    ) -> None:
        destination.name_of(0, request_id)
        self._client = client
        self._are_free = are_free
        self.request_id = request_id
        self.destination = destination
        self._found: dict[str, storage.Blob | None] = {}

    def blob(self, index: int, *, is_rejected: bool, chunk_size: int) -> storage.Blob:
        """Return an object to be written under the name of a video.

        :param chunk_size: of its upload, in bytes.
        """
        name = self.destination.name_of(index, self.request_id, is_rejected=is_rejected)
        return self._client.bucket(self.destination.bucket_name).blob(name, chunk_size=chunk_size)

    def look_up(self, index: int, *, is_rejected: bool = False) -> storage.Blob | None:
        """Return the object that has the name of a video, or None.

        :raises WanStorageError: the bucket does not answer, or refuses.
        """
        name = self.destination.name_of(index, self.request_id, is_rejected=is_rejected)
        if name not in self._found:
            self._found[name] = None if self._are_free else get_blob(self._client, self.destination.bucket_name, name)
        return self._found[name]

    def own(self, index: int, *, is_rejected: bool = False) -> storage.Blob | None:
        """Return the object that has the name of a video if it is this video."""
        found = self.look_up(index, is_rejected=is_rejected)
        return found if found is not None and is_of(found, self.request_id, index) else None

    def check_free(self, index: int) -> None:
        """Check that a video may be written, before anything is downloaded for it.

        :raises WanConflictError: the name is another video's, and ``if_exists`` is ``fail``.
        """
        found = self.look_up(index)
        if found is not None and self.destination.if_exists == "fail" and not is_of(found, self.request_id, index):
            raise self.conflict(found)

    def forget(self) -> None:
        """Look everything up again."""
        self._found.clear()

    def conflict(self, blob: storage.Blob) -> WanConflictError:
        """Return the error about another object that has the name."""
        owner = (blob.metadata or {}).get(META_REQUEST)
        what = f"the video of request {owner}" if owner else "another object"
        return WanConflictError(
            f"gs://{blob.bucket.name}/{blob.name} holds {what}, and not that of request {self.request_id}; nothing "
            'was overwritten. Choose another object_name, or if_exists="overwrite".',
            request_id=self.request_id,
        )


def id_of(record: Record) -> str:
    """Return the request id of a record that has one."""
    if record.request_id is None:
        raise ValueError("a record without a request id has nothing to land")
    return record.request_id


def is_of(blob: storage.Blob, request_id: str, index: int) -> bool:
    """Return whether an object's metadata says that it is this video of this request."""
    metadata = blob.metadata or {}
    return metadata.get(META_REQUEST) == request_id and metadata.get(META_INDEX) == str(index)


def metadata_of(record: Record, index: int, count: int, inspection: Inspection) -> dict[str, str]:
    """Return the metadata of the object of a video."""
    generated_at = record.finished_at or record.created_at
    return {
        META_REQUEST: id_of(record),
        META_MODEL: record.model_id,
        META_FINGERPRINT: record.fingerprint,
        META_INDEX: str(index),
        META_COUNT: str(count),
        META_SOURCE_TYPE: AI_GENERATED,
        **({META_GENERATED_AT: generated_at} if generated_at else {}),
        **({META_FACTS: json.dumps(dict(inspection.facts))} if inspection.facts else {}),
        **({META_VERDICT: json.dumps(dict(inspection.verdict))} if inspection.verdict else {}),
    }


def inspection_of(blob: storage.Blob) -> Inspection:
    """Return facts and verdict that an object's metadata holds."""
    metadata = blob.metadata or {}
    return Inspection(_json_of(metadata.get(META_FACTS)), _json_of(metadata.get(META_VERDICT)))


def _json_of(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def landed_as(blob: storage.Blob, request_id: str, inspection: Inspection | None = None) -> LandedVideo:
    """Return an object as a landed video of a request.

    :param inspection: its facts and verdict; None: those that its metadata holds.
    """
    inspection = inspection or inspection_of(blob)
    return LandedVideo(
        uri=f"gs://{blob.bucket.name}/{blob.name}",
        bucket=blob.bucket.name,
        object_name=blob.name,
        size_bytes=int(blob.size),
        crc32c=blob.crc32c,
        generation=int(blob.generation),
        content_type=blob.content_type or CONTENT_TYPE,
        request_id=request_id,
        facts=inspection.facts,
        verdict=inspection.verdict,
    )


# -- where the bytes come from ---------------------------------------------------------------------------------


class SourceGoneError(Exception):
    """The object is not there any more as it landed, or may not be read: the result must be downloaded."""


class Source(Protocol):
    """Something that can become an object."""

    @property
    def crc32c(self) -> str:
        """The checksum that the object will have, base64."""

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Write the object.

        :param blob: the object to be, with its metadata; it has the properties of the written one afterwards.
        :param replaces: the generation that it replaces; 0: it must not exist.
        :raises PreconditionFailed: another generation exists.
        :raises SourceGoneError: the source does not exist any more.
        """


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A video that was downloaded whole and checked."""

    download: Download
    content_type: str

    @property
    def crc32c(self) -> str:
        """The checksum of the downloaded bytes."""
        return self.download.crc32c

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Upload it, with the checksum sent along, so that a damaged upload never becomes an object."""
        blob.crc32c = self.download.crc32c
        upload(
            blob,
            self.download.file,
            size_bytes=self.download.size_bytes,
            content_type=self.content_type,
            if_generation_match=replaces,
            retry_for_s=UPLOAD_RETRY_FOR_S,
        )


@dataclass(frozen=True, slots=True)
class LandedBefore:
    """A video that landed under another name, and is copied without leaving Cloud Storage."""

    client: storage.Client
    video: LandedVideo

    @property
    def crc32c(self) -> str:
        """The checksum that was verified when it landed."""
        return self.video.crc32c

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Copy it, at the generation that landed."""
        from google.api_core.exceptions import Forbidden, NotFound

        video = self.video
        source = self.client.bucket(video.bucket).blob(video.object_name, generation=video.generation)
        blob.content_type = video.content_type
        deadline = time.monotonic() + COPY_FOR_S
        token: str | None = None
        while True:
            try:
                token, _, _ = blob.rewrite(
                    source,
                    token=token,
                    if_generation_match=replaces,
                    if_source_generation_match=video.generation,
                    **call_limits(),
                )
            except (NotFound, Forbidden) as error:
                raise SourceGoneError(f"{video.uri} is not there any more, or may not be read") from error
            if token is None:
                return
            if time.monotonic() > deadline:
                raise WanStorageError(
                    f"Copying {video.uri} took longer than {COPY_FOR_S:.0f} s. Try again, or delete it there: then "
                    "the video is downloaded from RunComfy.",
                    request_id=video.request_id,
                )


# -- the record next to the first video ------------------------------------------------------------------------


class RecordObject:
    """Writes ``{object_name}.json`` next to the first video: inputs, times and cost, for people and for tables.

    :param hook: the API, for the cost if an earlier try ended before it wrote the record.
    :param client: a Cloud Storage client.
    """

    def __init__(self, hook: WanHook, client: storage.Client, log: Logger) -> None:
        self._hook = hook
        self._client = client
        self._log = log

    def write(self, record: Record, *, is_first: bool = False) -> None:
        """Write it, unless it is there. A landing never fails because of it.

        Another object of that name is only replaced if it is the record of a video that was replaced too.

        :param is_first: whether the video has just landed: then most likely there is no record yet, and the name is
            looked up only if the write finds one, which saves a round trip.
        """
        request_id, first = id_of(record), record.videos[0]
        bucket, name = first.bucket, f"{first.object_name}.json"
        try:
            if is_first and self._put(self._with_cost(record), bucket, name, replaces=0):
                return
            found = get_blob(self._client, bucket, name)
            owner = (found.metadata or {}).get(META_REQUEST) if found is not None else None
            if owner == request_id:
                return
            if found is not None and (owner is None or not self._is_ours(record)):
                self._log.warning(
                    "gs://%s/%s is not the record of request %s and was left as it is.",
                    bucket,
                    name,
                    request_id,
                )
                return
            replaces = int(found.generation) if found is not None else 0
            self._put(self._with_cost(record), bucket, name, replaces=replaces)
        except WanError as error:
            self._log.warning("The record next to the video could not be written: %s", error)

    def _put(self, record: Record, bucket: str, name: str, *, replaces: int) -> bool:
        """Write it; return False if another generation exists, such as another try's record."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._client.bucket(bucket).blob(name)
        blob.metadata = {META_REQUEST: id_of(record)}
        with storage_errors(f"Writing gs://{bucket}/{name}"):
            try:
                upload(
                    blob,
                    (replace(record, claim="", watchers=(), earlier_buyers=()).to_json() + "\n").encode(),
                    content_type="application/json",
                    if_generation_match=replaces,
                )
            except PreconditionFailed:
                return False
        return True

    def _is_ours(self, record: Record) -> bool:
        """Return whether the first video's metadata names this request: equal bytes alone do not make it ours."""
        first = record.videos[0]
        blob = get_blob(self._client, first.bucket, first.object_name)
        return blob is not None and is_of(blob, id_of(record), 0)

    def _with_cost(self, record: Record) -> Record:
        """Ask for the cost if an earlier try landed the video and ended before it wrote the record."""
        if record.cost_usd is not None or record.finished_at is not None:
            return record
        with contextlib.suppress(WanError):
            result = self._hook.get_result(id_of(record), retry=False)
            known = with_result(replace(record, stage=Stage.SUBMITTED), result)
            return replace(known, stage=record.stage, succeeded_once=True)
        return record
