# SPDX-License-Identifier: Apache-2.0
"""Videos, records and status files in buckets, read with the credentials of one connection.

A browser gets a video through a short-lived signed address, or the API server streams it in ranges.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.gallery.batches import BatchLines
from airflow_provider_wan.gallery.workers import SharedCache
from airflow_provider_wan.hooks.gcs import (
    TIMEOUT_S,
    retry_policy,
    split_gs_uri,
    storage_client,
    storage_errors,
)
from airflow_provider_wan.landing.landing import META_REQUEST

if TYPE_CHECKING:
    from google.cloud import storage

log = logging.getLogger(__name__)

#: How long a signed address works: longer than one viewing of a video takes.
SIGNED_FOR = timedelta(minutes=15)
#: Seconds until new credentials of a connection are used.
_CLIENT_KEPT_S = 300.0
_ONE_RANGE = re.compile(r"bytes=(\d+-\d*|-\d+)")
_PASSED_ON = ("Content-Length", "Content-Range")
_PIECE_BYTES = 256 * 1024
_LONGEST_RECORD_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class VideoVersion:
    """A landed video, as the XCom of the task that landed it names it.

    :param generation: the version of the object that landed; another one under that name is not shown.
    """

    uri: str
    request_id: str
    generation: int
    crc32c: str

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> VideoVersion:
        """Read it from an XCom.

        :raises ValueError: a field is missing.
        """
        try:
            return cls(
                str(plain["uri"]), str(plain["request_id"]), int(plain["generation"]), str(plain["crc32c"])
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a landed video: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a video, to be streamed.

    :param close: ends the download.
    """

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]
    close: Callable[[], None]


class Media:
    """Access to buckets with the credentials of one connection; its cached reads are shared by all viewers.

    :param client: a Cloud Storage client.
    """

    def __init__(self, client: storage.Client) -> None:
        self._client = client
        # Per connection: one team's data must not reach another.
        self._lines = SharedCache(256, fresh_s=10.0)
        self._records = SharedCache(1024, fresh_s=10.0)
        self._landed = SharedCache(10_000, fresh_s=3600.0)

    def lines(self, uri: str) -> BatchLines | None:
        """Return the lines of a batch's file; None if it cannot be read."""
        found = self._lines.get(uri, lambda earlier: self._read_lines(uri, earlier))
        return found[1] if found else None

    def _read_lines(self, uri: str, earlier: tuple[int, BatchLines] | None) -> tuple[int, BatchLines] | None:
        """Return a file's lines, from the cache if it has not changed."""
        try:
            blob = self._find(uri, retry_s=5.0)
            if blob is None:
                return None
            if earlier and earlier[0] == int(blob.generation):
                return earlier
            return int(blob.generation), read_lines(blob, retry_s=5.0)
        except WanError as error:
            log.warning("The file of a batch cannot be read: %s", error)
            return None

    def record(self, uri: str) -> Mapping[str, Any] | None:
        """Return a record of a journal; None if it cannot be read."""

        def read(_: Any) -> Mapping[str, Any] | None:
            try:
                record = json.loads(self._start_of(uri, max_bytes=_LONGEST_RECORD_BYTES, retry_s=5.0))
            except (WanError, ValueError):
                return None
            return record if isinstance(record, Mapping) else None

        return self._records.get(uri, read)

    def find_landed(self, uri: str, request_id: str) -> VideoVersion | None:
        """Find the video of a request by its address; None if the object belongs to another request."""
        blob = self._find(uri)
        if blob is None or (blob.metadata or {}).get(META_REQUEST) != request_id:
            return None
        return VideoVersion(uri, request_id, int(blob.generation), blob.crc32c)

    def is_what_landed(self, video: VideoVersion) -> bool:
        """Return whether the object is a video that the provider landed for that request.

        An XCom can name any object that this server can read. So the object decides: its metadata has the request,
        or it has the bytes of the video (a landing that found the same bytes keeps them).
        """
        key = (video.uri, video.generation)
        request_id, crc32c = self._landed.get(key, lambda earlier: earlier or self._read_landed(video))
        return request_id == video.request_id or (bool(crc32c) and crc32c == video.crc32c)

    def _read_landed(self, video: VideoVersion) -> tuple[str | None, str | None]:
        blob = self._find(video.uri, video.generation)
        return (None, None) if blob is None else ((blob.metadata or {}).get(META_REQUEST), blob.crc32c)

    def signed_address(self, video: VideoVersion) -> str | None:
        """Return an address that works for a while without Airflow; None if the credentials cannot sign."""
        from google.auth.credentials import AnonymousCredentials, Signing

        credentials = self._client._credentials
        if not isinstance(credentials, Signing) or isinstance(credentials, AnonymousCredentials):
            return None
        blob = self._blob(video.uri)
        try:
            address: str = blob.generate_signed_url(
                version="v4", expiration=SIGNED_FOR, method="GET", generation=video.generation
            )
        except (
            Exception
        ):  # signing may need a call that IAM does not allow; the server then streams the video
            return None
        return address

    def part(self, video: VideoVersion, *, range_header: str | None, if_range: str | None) -> Answer:
        """Fetch a part of a video by HTTP's ranges; several ranges at once are answered with the whole.

        :raises WanStorageError: the bucket did not answer.
        """
        etag = f'"{video.generation}"'
        headers = {"Accept-Encoding": "identity"}
        wants_part = range_header is not None and _ONE_RANGE.fullmatch(range_header.strip())
        if wants_part and if_range in (None, etag):
            headers["Range"] = str(range_header).strip()
        with storage_errors(f"Reading {video.uri}", request_id=video.request_id):
            response = self._client._http.request(
                "GET", self._download_address(video), headers=headers, stream=True, timeout=TIMEOUT_S
            )
        passed_on = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        passed_on |= {"ETag": etag, "Accept-Ranges": "bytes"}
        return Answer(
            response.status_code, passed_on, response.iter_content(_PIECE_BYTES), close=response.close
        )

    def _download_address(self, video: VideoVersion) -> str:
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        endpoint = self._client.api_endpoint or "https://storage.googleapis.com"
        path = f"/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
        return f"{endpoint}{path}?alt=media&generation={video.generation}"

    def image(self, uri: str, *, max_bytes: int) -> bytes:
        """Read the first bytes of an image in a bucket.

        :raises WanError: it cannot be read.
        """
        return self._start_of(uri, max_bytes=max_bytes, retry_s=15.0)

    def _blob(self, uri: str) -> storage.Blob:
        bucket, name = split_gs_uri(uri, name="address", needs_object=True)
        return self._client.bucket(bucket).blob(name)

    def _find(self, uri: str, generation: int | None = None, *, retry_s: float = 20.0) -> storage.Blob | None:
        blob = self._blob(uri)
        with storage_errors(f"Looking for {uri}"):
            return blob.bucket.get_blob(
                blob.name, generation=generation, timeout=TIMEOUT_S, retry=retry_policy(retry_s)
            )

    def _start_of(self, uri: str, *, max_bytes: int, retry_s: float) -> bytes:
        blob = self._blob(uri)
        with storage_errors(f"Reading {uri}"):
            data: bytes = blob.download_as_bytes(
                end=max_bytes - 1, timeout=TIMEOUT_S, retry=retry_policy(retry_s), checksum=None
            )
        return data


def read_lines(blob: storage.Blob, *, retry_s: float | None = None) -> BatchLines:
    """Read an object with a JSON object on each line; other lines are skipped.

    :param retry_s: for how long to retry, in seconds; default: as all calls of Cloud Storage.
    :raises WanError: it cannot be read.
    """
    with storage_errors(f"Reading gs://{blob.bucket.name}/{blob.name}"):
        return BatchLines.temporary(
            lambda file: blob.download_to_file(file, timeout=TIMEOUT_S, retry=retry_policy(retry_s))
        )


_media = SharedCache(32, fresh_s=_CLIENT_KEPT_S)


def media_of(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...] | None) -> Media:
    """Return the access with one connection's credentials."""

    def connect(_: Any) -> Media:
        return Media(storage_client(gcp_conn_id, list(impersonation_chain) if impersonation_chain else None))

    return _media.get((gcp_conn_id, impersonation_chain), connect)
