# SPDX-License-Identifier: Apache-2.0
"""Landing: a video of a result is in the bucket whole and verified, or not at all.

The object appears only when its last byte has arrived (that is how Cloud Storage uploads work), only if no other
process has written that name in between (``ifGenerationMatch``), and only with the checksum of the downloaded bytes.
A request that has landed under another name is copied from there as long as that object exists; otherwise its result is
fetched, which RunComfy deletes at some time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from logging import Logger
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_wan.durable.reconcile import with_result
from airflow_provider_wan.durable.record import LandedVideo, Record, Stage, utc_text
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanDownloadError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
)
from airflow_provider_wan.hooks.gcs import META_REQUEST, call_limits, storage_errors
from airflow_provider_wan.http.fetch import Download
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.download import Downloader, LinkExpiredError
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
    VideoNames,
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
from airflow_provider_wan.model_api.faults import error_of_no_output, error_of_result
from airflow_provider_wan.model_api.values import RequestResult

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.hooks.wan import WanHook

__all__ = ["META_REQUEST", "Destination", "IfExists", "Landing", "as_landed"]

T = TypeVar("T")
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
        hook: WanHook,
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
        is_first_try: bool = False,
    ) -> Record:
        """Land every video of a request, and its record next to the first.

        :param record: the record of the request; its id at least. Videos that have landed under another name,
            according to it, are copied from there.
        :param on_result: called with the result, before a file is downloaded.
        :param is_first_try: whether the names were free when it was bought, and nothing has tried to land it since.
            Then they are not looked up; the write of a name that is taken by now fails, or finds the same video.
        :return: the record, as landed.
        :raises WanDownloadError: a file could not be fetched whole, or may not be.
        :raises WanNoOutputError: the result has no video.
        :raises WanConflictError: another video has the name.
        :raises WanStorageError: the bucket refused, or did not answer.
        :raises WanGenerationFailedError: the request failed.
        :raises WanCancelledError: it was cancelled.
        :raises WanRefusedError: RunComfy does not know it any more, and it has not landed under another name.
        """
        are_free = is_first_try and destination.if_exists != "overwrite"
        names = VideoNames(self._client, id_of(record), destination, are_free=are_free)
        # Most requests have not landed before. Their result is asked for during the look-up, which saves the time of
        # a connection and a call; of one that has landed before it is not needed, whatever it is.
        result = None if are_free or record.videos else _in_background(lambda: self._result(record))
        found = self._already_landed(names)
        if found:
            self._log.info("Request %s has landed before: %s", record.request_id, ", ".join(v.uri for v in found))
            landed = replace(record, videos=found)
        else:
            landed = self._copy(record, names) or self._download_all(record, names, result, on_result)
        landed = replace(
            landed,
            stage=Stage.LANDED,
            succeeded_once=True,
            landed_at=(landed.landed_at if found else None) or utc_text(),
            digital_source_type=AI_GENERATED,
        )
        self._record.write(landed, is_first=not found)
        return landed

    def _already_landed(self, names: VideoNames) -> tuple[LandedVideo, ...]:
        """Return all videos of this request, if all are in the bucket."""
        videos: list[LandedVideo] = []
        count = 1
        while len(videos) < count:
            index = len(videos)
            blob = names.own(index) or (names.own(index, is_rejected=True) if self._checks.quarantines else None)
            if blob is None:
                return ()
            videos.append(landed_as(blob, names.request_id))
            stated = str((blob.metadata or {}).get(META_COUNT, "1"))
            count = int(stated) if index == 0 and stated.isdecimal() and len(stated) < 4 else count
        return tuple(videos)

    def _copy(self, record: Record, names: VideoNames) -> Record | None:
        """Copy the videos that landed under other names; return None if there are none, or some are gone."""
        before = record.videos
        if not before or any(video.request_id != names.request_id for video in before):
            return None
        copies = []
        for index, video in enumerate(before):
            names.check_free(index)
            source = LandedBefore(self._client, video)
            try:
                inspection = self._earlier_inspection(video)
                copies.append(self._place(source, record, index, len(before), names, inspection))
            except SourceGoneError as error:
                self._log.info("Request %s landed before, but %s. Asking for its result.", names.request_id, error)
                names.forget()  # some videos may have been copied before one was missing
                return None
        return replace(record, videos=tuple(copies))

    def _download_all(
        self,
        record: Record,
        names: VideoNames,
        asked: Future[RequestResult] | None,
        on_result: Callable[[RequestResult], None],
    ) -> Record:
        """Download the files of the result."""
        result = asked.result() if asked is not None else self._result(record)
        on_result(result)
        known = with_result(record, result)
        landed = []
        for index in range(len(result.video_urls)):
            names.check_free(index)
            if own := names.own(index):
                landed.append(landed_as(own, names.request_id))
                continue
            with self._download(known, result, index) as download:
                video = _check_video(download, names.request_id)
                before = record.videos[index] if index < len(record.videos) else None
                if before is not None and before.verdict is not None and before.crc32c == download.crc32c:
                    inspection = self._earlier_inspection(before)
                else:
                    inspection = self._inspector.inspect(download.file, download.size_bytes, video, known)
                source = Downloaded(download, video.content_type)
                landed.append(self._place(source, known, index, len(result.video_urls), names, inspection))
        return replace(known, videos=tuple(landed))

    def _result(self, record: Record) -> RequestResult:
        request_id = id_of(record)
        try:
            result = self._hook.get_result(request_id)
        except WanNotFoundError as error:
            before = record.videos
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
        if (failure := error_of_result(result)) is not None:
            raise failure
        if not result.video_urls:
            raise error_of_no_output(request_id)
        return result

    def _download(self, record: Record, result: RequestResult, index: int) -> Download:
        """Download one file; a link that has expired is asked for again, twice."""
        for _ in range(2):
            try:
                return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)
            except LinkExpiredError as error:
                self._log.info("%s Asking for a fresh one.", error)
                result = self._result(record)
                if len(result.video_urls) <= index:
                    raise
        return self._downloader.fetch(result.video_urls[index], request_id=result.request_id)

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
        names: VideoNames,
        inspection: Inspection,
    ) -> LandedVideo:
        """Write one object, unless it exists already or another one may not be replaced."""
        is_rejected = self._checks.rejects(inspection.verdict)
        found = names.look_up(index, is_rejected=is_rejected)
        if found is not None and (is_of(found, names.request_id, index) or found.crc32c == source.crc32c):
            name = (inspection_of(found).facts or {}).get(POSTER)
            return landed_as(found, names.request_id, inspection.with_poster(name))
        if found is not None and names.destination.if_exists != "overwrite":
            raise names.conflict(found)
        blob = names.blob(index, is_rejected=is_rejected, chunk_size=_CHUNK_BYTES)
        poster = inspection.poster
        inspection = inspection.with_poster(poster_name(blob.name) if poster else None)
        blob.metadata = metadata_of(record, index, count, inspection)
        writing = _in_background(lambda: put_poster(poster, blob, names.request_id, self._log)) if poster else None
        try:
            blob = self._write(source, blob, names, replaces=int(found.generation) if found is not None else 0)
        finally:  # also where the video could not be written: nothing is written after this call
            has_poster = writing is not None and writing.result()
        if not has_poster:
            inspection = inspection.with_poster(None)
        landed = landed_as(blob, names.request_id, inspection)
        self._log.info("Landed %s (%d bytes).", landed.uri, landed.size_bytes)
        return landed

    def _write(self, source: Source, blob: storage.Blob, names: VideoNames, *, replaces: int) -> storage.Blob:
        """Write an object and compare its checksum."""
        from google.api_core.exceptions import PreconditionFailed

        uri, request_id = f"gs://{blob.bucket.name}/{blob.name}", names.request_id
        paid = " The request is paid for: run the task again when this is corrected, and nothing more is bought."
        with storage_errors(f"Writing {uri} of request {request_id}", request_id=request_id, advice=paid):
            try:
                source.write(blob, replaces=replaces)
            except PreconditionFailed as error:
                # Another try, our own write whose acknowledgement got lost, or a source that was replaced.
                other = get_blob(self._client, blob.bucket.name, blob.name)
                if other is not None and other.crc32c == source.crc32c:
                    return other
                if other is not None and int(other.generation) != replaces:
                    raise names.conflict(other) from None
                if isinstance(source, LandedBefore):
                    raise SourceGoneError(f"{source.video.uri} holds something else now") from error
                raise  # it is gone, or as it was: another try checks
            if blob.crc32c == source.crc32c:
                return blob
            blob.delete(if_generation_match=int(blob.generation), **call_limits())
        raise WanStorageError(
            f"{uri} did not hold what was sent (its crc32c differed), and was deleted. Try again.",
            request_id=request_id,
        )


def _in_background(call: Callable[[], T]) -> Future[T]:
    """Run a call on a thread that keeps no process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="wan-landing", daemon=True).start()
    return future


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
