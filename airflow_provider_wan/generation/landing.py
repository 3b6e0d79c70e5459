# SPDX-License-Identifier: Apache-2.0
"""Landing: a video of a result is in the bucket whole and verified, or it is not there.

The object appears only when its last byte has arrived (that is how Cloud Storage uploads work), only if nobody
else has written that name in between (``ifGenerationMatch``), and only with the checksum of what was fetched.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from logging import Logger
from typing import TYPE_CHECKING, Literal

from airflow_provider_wan.exceptions import (
    WanConflictError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
)
from airflow_provider_wan.generation.download import Download, Downloader, LinkExpiredError
from airflow_provider_wan.generation.mp4 import check_mp4
from airflow_provider_wan.generation.records import LandedVideo, Record, Stage, utc_text
from airflow_provider_wan.generation.submission import Api, raise_unless_succeeded, with_result
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, check_object_name, retry_policy, storage_errors
from airflow_provider_wan.model_api.calls import RequestResult

if TYPE_CHECKING:
    from google.cloud import storage

IfExists = Literal["skip", "overwrite", "fail"]
CONTENT_TYPE = "video/mp4"
#: Pieces of a resumable upload; the client holds one of them in memory.
_CHUNK_BYTES = 16 * 1024 * 1024
META_REQUEST, _META_INDEX, _META_COUNT = "wan-request-id", "wan-video-index", "wan-video-count"
_META_MODEL, _META_FINGERPRINT = "wan-model-id", "wan-fingerprint"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the videos of one request go.

    :param object_name: name of the first video; one that ends with ``/`` gets ``{request_id}.mp4``. The
        second and third get ``-2``, ``-3`` before the suffix.
    :param if_exists: what to do where another video stands under that name: ``skip`` (only the same
        request or the same bytes count as there; anything else raises), ``overwrite`` (at the generation that
        was read), or ``fail`` (raises unless it is this request's).
    """

    bucket_name: str
    object_name: str
    if_exists: IfExists = "skip"

    def name_of(self, index: int, request_id: str) -> str:
        """Give the object name of a video.

        :param index: from 0.
        """
        name = self.object_name
        if name.endswith("/") or not name:
            name += f"{request_id}.mp4"
        if index:
            stem, suffix = posixpath.splitext(name)
            name = f"{stem}-{index + 1}{suffix}"
        return check_object_name(name)


class Landing:
    """Lands the videos of requests in buckets.

    :param hook: the API, for results.
    :param client: a Cloud Storage client.
    :param downloader: fetches result files.
    """

    def __init__(self, hook: Api, client: storage.Client, downloader: Downloader, log: Logger) -> None:
        self._hook = hook
        self._client = client
        self._downloader = downloader
        self._log = log

    def land(self, record: Record, destination: Destination) -> Record:
        """Land every video of a request, and its record beside the first.

        :param record: what is known of the request; its id at least.
        :return: the record, as landed.
        :raises WanDownloadError: a file could not be fetched whole, or may not be.
        :raises WanConflictError: another video stands where one should land.
        :raises WanStorageError: the bucket did not take it.
        :raises WanGenerationFailedError: the request failed, or was cancelled.
        """
        request_id = _id_of(record)
        there = self._already_there(request_id, destination)
        if there:
            self._log.info("Request %s has landed before: %s", request_id, ", ".join(v.uri for v in there))
            landed = replace(record, stage=Stage.LANDED, succeeded_once=True, videos=there)
        else:
            result = self._result(request_id)
            count = len(result.video_urls)
            videos = tuple(
                self._land_one(record, result, index, count, destination) for index in range(count)
            )
            record = replace(with_result(record, result), videos=videos, landed_at=utc_text())
            landed = replace(record, stage=Stage.LANDED)
        self._write_record(landed, destination)
        return landed

    def _already_there(self, request_id: str, destination: Destination) -> tuple[LandedVideo, ...]:
        """Find the videos of this very request, all of them, without asking the API."""
        first = self._get_blob(destination.bucket_name, destination.name_of(0, request_id))
        if first is None or not _is_of(first, request_id, 0):
            return ()
        blobs = [first]
        for index in range(1, int((first.metadata or {}).get(_META_COUNT, "1"))):
            blob = self._get_blob(destination.bucket_name, destination.name_of(index, request_id))
            if blob is None or not _is_of(blob, request_id, index):
                return ()
            blobs.append(blob)
        return tuple(_landed(blob, request_id) for blob in blobs)

    def _result(self, request_id: str) -> RequestResult:
        try:
            result = self._hook.get_result(request_id)
        except WanNotFoundError as error:
            raise WanRefusedError(
                f"RunComfy does not know request {request_id} any more, and its videos are not in the bucket. "
                "Where it was landed before under another name, nothing is lost; else a new value of variation "
                "buys the video again.",
                request_id=request_id,
            ) from error
        raise_unless_succeeded(result)
        if not result.video_urls:
            raise WanGenerationFailedError(
                f"Request {request_id} succeeded, but its output holds no video.", request_id=request_id
            )
        return result

    def _land_one(
        self, record: Record, result: RequestResult, index: int, count: int, destination: Destination
    ) -> LandedVideo:
        request_id = _id_of(record)
        name = destination.name_of(index, request_id)
        there = self._get_blob(destination.bucket_name, name)
        if there is not None and _is_of(there, request_id, index):
            return _landed(there, request_id)
        if there is not None and destination.if_exists == "fail":
            raise _conflict(there, request_id, destination)
        with self._fetch(result, index) as download:
            _check_video(download, request_id)
            if there is not None and there.crc32c == download.crc32c:
                return _landed(there, request_id)
            if there is not None and destination.if_exists != "overwrite":
                raise _conflict(there, request_id, destination)
            metadata = _metadata(record, index, count)
            return self._upload(download, destination, name, there, metadata)

    def _fetch(self, result: RequestResult, index: int) -> Download:
        """Fetch one file; a link that has expired is asked for again, twice."""
        for _ in range(2):
            try:
                return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)
            except LinkExpiredError as error:
                self._log.info("%s Asking for a fresh one.", error)
                result = self._result(result.request_id)
                if len(result.video_urls) <= index:
                    raise
        return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)

    def _upload(
        self,
        download: Download,
        destination: Destination,
        name: str,
        there: storage.Blob | None,
        metadata: dict[str, str],
    ) -> LandedVideo:
        from google.api_core.exceptions import PreconditionFailed

        request_id = metadata[META_REQUEST]
        blob = self._client.bucket(destination.bucket_name).blob(name, chunk_size=_CHUNK_BYTES)
        blob.metadata = metadata
        with storage_errors(f"Writing gs://{destination.bucket_name}/{name}", request_id=request_id):
            try:
                blob.upload_from_file(
                    download.file,
                    size=download.size_bytes,
                    content_type=CONTENT_TYPE,
                    if_generation_match=int(there.generation) if there is not None else 0,
                    checksum="crc32c",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(300.0),
                )
            except PreconditionFailed:
                # Another try, or our own upload whose acknowledgement got lost.
                blob = self._get_blob(destination.bucket_name, name)
                if blob is None or blob.crc32c != download.crc32c:
                    raise _conflict(blob, request_id, destination) from None
        if blob.crc32c != download.crc32c:
            raise WanStorageError(
                f"gs://{destination.bucket_name}/{name} does not hold what was sent (its crc32c differs).",
                request_id=request_id,
            )
        landed = _landed(blob, request_id)
        self._log.info("Landed %s (%d bytes).", landed.uri, landed.size_bytes)
        return landed

    def _get_blob(self, bucket: str, name: str) -> storage.Blob | None:
        with storage_errors(f"Looking for gs://{bucket}/{name}"):
            return self._client.bucket(bucket).get_blob(name, timeout=TIMEOUT_S, retry=retry_policy())

    def _write_record(self, record: Record, destination: Destination) -> None:
        """Write the record beside the video, for people and tables; a video that is there never fails on it."""
        from google.api_core.exceptions import PreconditionFailed

        name = f"{destination.name_of(0, _id_of(record))}.json"
        body = replace(record, claim="", watchers=()).to_json() + "\n"
        try:
            there = self._get_blob(destination.bucket_name, name)
            if there is not None and (there.metadata or {}).get(META_REQUEST) == record.request_id:
                return
            blob = self._client.bucket(destination.bucket_name).blob(name)
            blob.metadata = {META_REQUEST: _id_of(record)}
            with (
                storage_errors(f"Writing gs://{destination.bucket_name}/{name}"),
                contextlib.suppress(PreconditionFailed),  # another try has just written it
            ):
                blob.upload_from_string(
                    body.encode(),
                    content_type="application/json",
                    if_generation_match=int(there.generation) if there is not None else 0,
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
        except WanError as error:
            self._log.warning("The record beside the video could not be written: %s", error)


def _id_of(record: Record) -> str:
    if record.request_id is None:
        raise ValueError("a record without a request id has nothing to land")
    return record.request_id


def _is_of(blob: storage.Blob, request_id: str, index: int) -> bool:
    metadata = blob.metadata or {}
    return metadata.get(META_REQUEST) == request_id and metadata.get(_META_INDEX) == str(index)


def _metadata(record: Record, index: int, count: int) -> dict[str, str]:
    return {
        META_REQUEST: _id_of(record),
        _META_MODEL: record.model_id,
        _META_FINGERPRINT: record.fingerprint,
        _META_INDEX: str(index),
        _META_COUNT: str(count),
    }


def _landed(blob: storage.Blob, request_id: str) -> LandedVideo:
    return LandedVideo(
        uri=f"gs://{blob.bucket.name}/{blob.name}",
        bucket=blob.bucket.name,
        object_name=blob.name,
        size_bytes=int(blob.size),
        crc32c=blob.crc32c,
        generation=int(blob.generation),
        content_type=blob.content_type or CONTENT_TYPE,
        request_id=request_id,
    )


def _check_video(download: Download, request_id: str) -> None:
    try:
        mp4 = check_mp4(download.file, download.size_bytes)  # type: ignore[arg-type]
    except ValueError as error:
        raise WanDownloadError(
            f"The file of request {request_id} is not a whole MP4: {error}. Nothing was put into the bucket. "
            "It is paid for and not lost: another try fetches it again.",
            request_id=request_id,
        ) from None
    if mp4.open_ended and not download.length_was_promised:
        raise WanDownloadError(
            f"The file of request {request_id} came without a length, and its last box has none either: it "
            "can't be told whether it is whole. Nothing was put into the bucket.",
            request_id=request_id,
        )
    download.file.seek(0)


def _conflict(blob: storage.Blob | None, request_id: str, destination: Destination) -> WanConflictError:
    name = blob.name if blob is not None else destination.object_name
    owner = ((blob.metadata or {}) if blob is not None else {}).get(META_REQUEST)
    what = f"the video of request {owner}" if owner else "another object"
    return WanConflictError(
        f"gs://{destination.bucket_name}/{name} holds {what}, and not that of request {request_id}; nothing was "
        'overwritten. Choose another object_name, or if_exists="overwrite".',
        request_id=request_id,
    )


Amend = Callable[[Record], Record]


def as_landed(landed: Record) -> Amend:
    """Give the change that brings a journal's record up to a landing."""

    def change(record: Record) -> Record:
        return replace(
            record,
            stage=Stage.LANDED,
            succeeded_once=True,
            videos=landed.videos,
            landed_at=record.landed_at or landed.landed_at,
            cost_usd=landed.cost_usd if landed.cost_usd is not None else record.cost_usd,
            created_at=landed.created_at or record.created_at,
            finished_at=landed.finished_at or record.finished_at,
        )

    return change
