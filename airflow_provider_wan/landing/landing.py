# SPDX-License-Identifier: Apache-2.0
"""Landing: a video of a result is in the bucket whole and verified, or not at all.

The object appears only when its last byte has arrived (that is how Cloud Storage uploads work), only if no other
process has written that name in between (``ifGenerationMatch``), and only with the checksum of the downloaded bytes.
A request that has landed under another name is copied from there as long as that object exists; otherwise its result is
fetched, which RunComfy deletes at some time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from logging import Logger
from typing import TYPE_CHECKING

from airflow_provider_wan.durable.reconcile import Api, raise_unless_succeeded, with_result
from airflow_provider_wan.durable.record import LandedVideo, Record, Stage, utc_text
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanDownloadError,
    WanNoOutputError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
)
from airflow_provider_wan.hooks.gcs import META_REQUEST, TIMEOUT_S, retry_policy, storage_errors
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.download import Download, Downloader, LinkExpiredError
from airflow_provider_wan.landing.inspector import Inspection, VideoInspector
from airflow_provider_wan.landing.objects import (
    AI_GENERATED,
    META_COUNT,
    Destination,
    Downloaded,
    IfExists,
    LandedBefore,
    RecordObject,
    Source,
    SourceGoneError,
    conflict,
    get_blob,
    id_of,
    inspection_of,
    is_of,
    landed_as,
    metadata_of,
)
from airflow_provider_wan.landing.poster import FACT as POSTER
from airflow_provider_wan.landing.poster import poster_name, put_poster
from airflow_provider_wan.landing.video_file import VideoFile, check_video_file
from airflow_provider_wan.model_api.calls import RequestResult

if TYPE_CHECKING:
    from google.cloud import storage

__all__ = ["META_REQUEST", "Destination", "IfExists", "Landing", "as_landed"]

#: Pieces of a resumable upload; the client holds one of them in memory.
_CHUNK_BYTES = 16 * 1024 * 1024


class Landing:
    """Lands the videos of requests in buckets.

    :param hook: the API, for results.
    :param client: a Cloud Storage client.
    :param downloader: fetches result files.
    :param checks: how videos are checked, and where bad ones go; default: the built-in checks, which only report.
    """

    def __init__(
        self,
        hook: Api,
        client: storage.Client,
        downloader: Downloader,
        log: Logger,
        *,
        checks: VideoChecks | None = None,
    ) -> None:
        self._checks = checks or VideoChecks()
        self._inspector = VideoInspector(self._checks, client, log)
        self._hook = hook
        self._client = client
        self._downloader = downloader
        self._record = RecordObject(hook, client, log)
        self._log = log

    def land(
        self,
        record: Record,
        destination: Destination,
        *,
        on_result: Callable[[RequestResult], None] = lambda result: None,
    ) -> Record:
        """Land every video of a request, and its record next to the first.

        :param record: the record of the request; its id at least. Videos that have landed under another name,
            according to it, are copied from there.
        :param on_result: called with the result, before a file is downloaded.
        :return: the record, as landed.
        :raises WanDownloadError: a file could not be fetched whole, or may not be.
        :raises WanNoOutputError: the result has no video.
        :raises WanConflictError: another video has the name.
        :raises WanStorageError: the bucket refused, or did not answer.
        :raises WanGenerationFailedError: the request failed.
        :raises WanCancelledError: it was cancelled.
        :raises WanRefusedError: RunComfy does not know it any more, and it has not landed under another name.
        """
        request_id = id_of(record)
        first = self._first_blob(request_id, destination)
        found = self._already_landed(first, request_id, destination)
        if found:
            self._log.info("Request %s has landed before: %s", request_id, ", ".join(v.uri for v in found))
            landed = replace(record, videos=found)
        else:
            landed = self._copy_or_fetch(record, first, destination, on_result)
        landed = replace(
            landed,
            stage=Stage.LANDED,
            succeeded_once=True,
            landed_at=(landed.landed_at if found else None) or utc_text(),
            digital_source_type=AI_GENERATED,
        )
        self._record.write(landed, is_first=not found)
        return landed

    def _first_blob(self, request_id: str, destination: Destination) -> storage.Blob | None:
        """Return the object that has the first video's name; looked up once, since each look-up takes a round trip."""
        return self._blob(0, request_id, destination)

    def _already_landed(
        self, first: storage.Blob | None, request_id: str, destination: Destination
    ) -> tuple[LandedVideo, ...]:
        """Return all videos of this request, if all are in the bucket; the API is not asked."""
        blobs: list[storage.Blob] = []
        count = 1
        while len(blobs) < count:
            index = len(blobs)
            blob = first if index == 0 else self._blob(index, request_id, destination)
            if blob is None or not is_of(blob, request_id, index):
                blob = self._rejected_blob(index, request_id, destination)
            if blob is None:
                return ()
            blobs.append(blob)
            stated = str((blob.metadata or {}).get(META_COUNT, "1"))
            count = int(stated) if index == 0 and stated.isdecimal() and len(stated) < 4 else count
        return tuple(landed_as(blob, request_id) for blob in blobs)

    def _blob(
        self, index: int, request_id: str, destination: Destination, *, is_rejected: bool = False
    ) -> storage.Blob | None:
        name = destination.name_of(index, request_id, is_rejected=is_rejected)
        return get_blob(self._client, destination.bucket_name, name)

    def _rejected_blob(self, index: int, request_id: str, destination: Destination) -> storage.Blob | None:
        """Return the object of a video in quarantine, if bad videos go there and it is this one."""
        if not self._checks.quarantines:
            return None
        blob = self._blob(index, request_id, destination, is_rejected=True)
        return blob if blob is not None and is_of(blob, request_id, index) else None

    def _copy_or_fetch(
        self,
        record: Record,
        first: storage.Blob | None,
        destination: Destination,
        on_result: Callable[[RequestResult], None],
    ) -> Record:
        """Copy the videos from where they landed before, or download them.

        :param first: the object that has the first video's name.
        """
        copied = self._copy(record, first, destination)
        if copied is not None:
            return copied
        if record.videos:  # some of them may have been copied before one was missing
            first = self._first_blob(id_of(record), destination)
        return self._download_all(record, first, destination, on_result)

    def _copy(self, record: Record, first: storage.Blob | None, destination: Destination) -> Record | None:
        """Copy the videos that landed under other names; return None if there are none, or some are gone."""
        request_id = id_of(record)
        before = record.videos
        if not before or any(video.request_id != request_id for video in before):
            return None
        copies = []
        for index, video in enumerate(before):
            found = self._existing(first, request_id, index, destination)
            source = LandedBefore(self._client, video)
            try:
                inspection = self._earlier_inspection(video)
                copies.append(self._place(source, record, index, len(before), destination, found, inspection))
            except SourceGoneError as error:
                self._log.info("Request %s landed before, but %s. Asking for its result.", request_id, error)
                return None
        return replace(record, videos=tuple(copies))

    def _download_all(
        self,
        record: Record,
        first: storage.Blob | None,
        destination: Destination,
        on_result: Callable[[RequestResult], None],
    ) -> Record:
        """Download the files of the result."""
        request_id = id_of(record)
        result = self._result(request_id, record.videos)
        on_result(result)
        known = with_result(record, result)
        count = len(result.video_urls)
        landed = []
        for index in range(count):
            found = self._existing(first, request_id, index, destination)
            if found is not None and is_of(found, request_id, index):
                landed.append(landed_as(found, request_id))
                continue
            with self._download(result, index) as download:
                video = _check_video(download, request_id)
                before = record.videos[index] if index < len(record.videos) else None
                if before is not None and before.verdict is not None and before.crc32c == download.crc32c:
                    inspection = self._earlier_inspection(before)
                else:
                    inspection = self._inspector.inspect(download.file, download.size_bytes, video, known)
                source = Downloaded(download, video.content_type)
                landed.append(self._place(source, known, index, count, destination, found, inspection))
        return replace(known, videos=tuple(landed))

    def _result(self, request_id: str, before: tuple[LandedVideo, ...] = ()) -> RequestResult:
        try:
            result = self._hook.get_result(request_id)
        except WanNotFoundError as error:
            landed = f" It landed at {before[0].uri}, which is not there any more." if before else ""
            raise WanRefusedError(
                f"RunComfy does not know request {request_id} any more, and its videos are not in the bucket."
                f"{landed} Check the id, if a person gave it. If it landed before under another name, nothing is lost; "
                "if not, a new value of variation buys the video again.",
                request_id=request_id,
            ) from error
        except WanAuthError as error:
            # The request is paid for: once the token is corrected, another try lands it.
            raise WanTransientError(
                f"The result of request {request_id} could not be asked for: {error}", request_id=request_id
            ) from error
        if not result.is_paid_without_output:
            raise_unless_succeeded(result)
        if not result.video_urls:
            raise WanNoOutputError(
                f"Request {request_id} succeeded, but its output has no video, as after content moderation. Nothing "
                "was put into the bucket. It counts as paid, and is not bought again: look at it on RunComfy's "
                "Generations page. A new value of variation buys another video.",
                request_id=request_id,
            )
        return result

    def _download(self, result: RequestResult, index: int) -> Download:
        """Download one file; a link that has expired is asked for again, twice."""
        for _ in range(2):
            try:
                return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)
            except LinkExpiredError as error:
                self._log.info("%s Asking for a fresh one.", error)
                result = self._result(result.request_id)
                if len(result.video_urls) <= index:
                    raise
        return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)

    def _existing(
        self, first: storage.Blob | None, request_id: str, index: int, destination: Destination
    ) -> storage.Blob | None:
        """Return the object that has the name of a video, before anything is downloaded for it.

        :raises WanConflictError: it is another video's, and may not be replaced.
        """
        found = self._blob(index, request_id, destination) if index else first
        if found is not None and destination.if_exists == "fail" and not is_of(found, request_id, index):
            raise conflict(found, request_id, destination)
        return found

    def _earlier_inspection(self, video: LandedVideo) -> Inspection:
        """Return facts and verdict of a video that has landed before, and the object of its poster."""
        name = (video.facts or {}).get(POSTER)
        poster = self._client.bucket(video.bucket).blob(str(name)) if name else None
        return Inspection(video.facts, video.verdict, poster)

    def _place(
        self,
        source: Source,
        record: Record,
        index: int,
        count: int,
        destination: Destination,
        found: storage.Blob | None,
        inspection: Inspection,
    ) -> LandedVideo:
        """Write one object, unless it exists already or another one may not be replaced.

        :param found: the object that has the video's name outside of quarantine.
        """
        request_id = id_of(record)
        is_rejected = self._checks.rejects(inspection.verdict)
        if is_rejected:
            found = self._blob(index, request_id, destination, is_rejected=True)
        name = destination.name_of(index, request_id, is_rejected=is_rejected)
        if found is not None and (is_of(found, request_id, index) or found.crc32c == source.crc32c):
            poster = (inspection_of(found).facts or {}).get(POSTER)
            return landed_as(found, request_id, inspection.with_poster(poster))
        if found is not None and destination.if_exists != "overwrite":
            raise conflict(found, request_id, destination)
        blob = self._client.bucket(destination.bucket_name).blob(name, chunk_size=_CHUNK_BYTES)
        poster = inspection.poster
        inspection = inspection.with_poster(poster_name(name) if poster else None)
        blob.metadata = metadata_of(record, index, count, inspection)
        with ThreadPoolExecutor(1, "wan-poster") as beside:
            has_poster = beside.submit(put_poster, poster, blob, request_id, self._log) if poster else None
            blob = self._write(source, blob, found, request_id, destination)
        if has_poster is not None and not has_poster.result():
            inspection = inspection.with_poster(None)
        landed = landed_as(blob, request_id, inspection)
        self._log.info("Landed %s (%d bytes).", landed.uri, landed.size_bytes)
        return landed

    def _write(
        self,
        source: Source,
        blob: storage.Blob,
        found: storage.Blob | None,
        request_id: str,
        destination: Destination,
    ) -> storage.Blob:
        """Write an object and compare its checksum."""
        from google.api_core.exceptions import PreconditionFailed

        uri = f"gs://{destination.bucket_name}/{blob.name}"
        replaces = int(found.generation) if found is not None else 0
        paid = (
            " The request is paid for: run the task again when this is corrected, and nothing more is bought."
        )
        with storage_errors(f"Writing {uri} of request {request_id}", request_id=request_id, advice=paid):
            try:
                source.write(blob, replaces=replaces)
            except PreconditionFailed as error:
                # Another try, our own write whose acknowledgement got lost, or a source that was replaced.
                other = get_blob(self._client, destination.bucket_name, blob.name)
                if other is not None and other.crc32c == source.crc32c:
                    return other
                if other is not None and int(other.generation) != replaces:
                    raise conflict(other, request_id, destination) from None
                if isinstance(source, LandedBefore):
                    raise SourceGoneError(f"{source.video.uri} holds something else now") from error
                raise  # it is gone, or as it was: another try checks
            if blob.crc32c == source.crc32c:
                return blob
            blob.delete(if_generation_match=int(blob.generation), timeout=TIMEOUT_S, retry=retry_policy())
        raise WanStorageError(
            f"{uri} did not hold what was sent (its crc32c differed), and was deleted. Try again.",
            request_id=request_id,
        )


def _check_video(download: Download, request_id: str) -> VideoFile:
    """Return what the structure of a whole video says."""
    try:
        video = check_video_file(download.file, download.size_bytes)  # type: ignore[arg-type]
    except ValueError as error:
        raise WanDownloadError(
            f"The file of request {request_id} is not a whole video: {error}. Nothing was put into the bucket. "
            "It is paid for and not lost: another try fetches it again.",
            request_id=request_id,
        ) from None
    if video.open_ended and not download.length_was_promised:
        raise WanDownloadError(
            f"The file of request {request_id} came without a length, and its last part has none either: it "
            "cannot be checked whether it is whole. Nothing was put into the bucket.",
            request_id=request_id,
        )
    return video


def as_landed(landed: Record) -> Callable[[Record], Record]:
    """Return the change that updates a journal's record after a landing."""

    def change(record: Record) -> Record:
        return replace(
            record,
            stage=Stage.LANDED,
            succeeded_once=True,
            videos=landed.videos,
            landed_at=record.landed_at or landed.landed_at,
            digital_source_type=landed.digital_source_type,
            cost_usd=landed.cost_usd if landed.cost_usd is not None else record.cost_usd,
            created_at=landed.created_at or record.created_at,
            finished_at=landed.finished_at or record.finished_at,
        )

    return change
