# SPDX-License-Identifier: Apache-2.0
"""Videos and source images for the browser: by a short-lived signed address, or passed on in ranges."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_wan.exceptions import WanError
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

#: For how long a signed address works: longer than anybody watches one video, shorter than it could spread.
SIGNED_FOR = timedelta(minutes=15)
_ONE_RANGE = re.compile(r"bytes=(\d+-\d*|-\d+)")
_PASSED_ON = ("Content-Length", "Content-Range")
_PIECE_BYTES = 256 * 1024
#: For how long what was read of a batch stands: pages that show one are read again and again.
_KEPT_S = 10.0


@dataclass(frozen=True, slots=True)
class Video:
    """A landed video, as the XCom of the task that landed it names it.

    :param generation: the version of the object that landed; another one under that name is not shown.
    """

    uri: str
    request_id: str
    generation: int
    crc32c: str

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Video:
        """Read it from an XCom.

        :raises ValueError: it is not there whole.
        """
        try:
            return cls(
                str(plain["uri"]), str(plain["request_id"]), int(plain["generation"]), str(plain["crc32c"])
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a landed video: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a video, to be passed on."""

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]


class Media:
    """Access to videos in buckets.

    :param client: a Cloud Storage client.
    """

    def __init__(self, client: storage.Client) -> None:
        self._client = client

    def landed_as(self, uri: str, request_id: str) -> Video | None:
        """Find the video of a request under an address, where only these are known; None where it is not there."""
        bucket, name = split_gs_uri(uri, name="uri", needs_object=True)
        with storage_errors(f"Looking for {uri}", request_id=request_id):
            blob = self._client.bucket(bucket).get_blob(name, timeout=TIMEOUT_S, retry=retry_policy(20.0))
        if blob is None or (blob.metadata or {}).get(META_REQUEST) != request_id:
            return None
        return Video(uri, request_id, int(blob.generation), blob.crc32c)

    def lines(self, uri: str) -> list[Any]:
        """Read the lines of a batch's file; an empty list where it can't be read."""
        lines: list[Any] = _lines.get((self._client, uri), lambda: _lines_of(self._client, uri))
        return lines

    def record(self, uri: str) -> Mapping[str, Any] | None:
        """Read a record of a journal; None where there is none that can be read."""
        key = (self._client, uri)
        record: Mapping[str, Any] | None = _records.get(key, lambda: _record_of(self._client, uri))
        return record

    def is_what_landed(self, video: Video) -> bool:
        """Tell whether the object is what the provider landed for that request.

        Whoever may write an XCom could name any object that this server can read; the object itself has the last
        word: it names its request, or it has the bytes of the video (a landing that met the same bytes keeps them).
        """
        request_id, crc32c = _landed_as(self._client, video)
        return request_id == video.request_id or (bool(crc32c) and crc32c == video.crc32c)

    def signed_address(self, video: Video) -> str | None:
        """Give an address that works for a while without Airflow; None where the credentials can't sign."""
        from google.auth.credentials import AnonymousCredentials, Signing

        credentials = self._client._credentials
        if not isinstance(credentials, Signing) or isinstance(credentials, AnonymousCredentials):
            return None
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        blob = self._client.bucket(bucket).blob(name)
        try:
            address: str = blob.generate_signed_url(
                version="v4", expiration=SIGNED_FOR, method="GET", generation=video.generation
            )
        except Exception:  # signing may need a call that is not allowed (IAM): passing on works all the same
            return None
        return address

    def part(self, video: Video, *, range_header: str | None, if_range: str | None) -> Answer:
        """Fetch a part of a video, as HTTP's ranges have it; several ranges at once are answered whole.

        :raises WanStorageError: the bucket did not give it.
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
        status = response.status_code
        told = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        told |= {"ETag": etag, "Accept-Ranges": "bytes"}
        return Answer(status, told, _pieces(response))

    def _download_address(self, video: Video) -> str:
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        endpoint = self._client.api_endpoint or "https://storage.googleapis.com"
        path = f"/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
        return f"{endpoint}{path}?alt=media&generation={video.generation}"


class _Kept:
    """What was read a moment ago: whoever looks at a page reads the same again and again.

    :param most: how much is kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], Any]) -> Any:
        with self._lock:
            at, value = self._kept.get(key, (-math.inf, None))
        if time.monotonic() - at < _KEPT_S:
            return value
        value = read()
        with self._lock:
            self._kept[key] = (time.monotonic(), value)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value


_lines, _records = _Kept(64), _Kept(1024)


def _lines_of(client: storage.Client, uri: str) -> list[Any]:
    try:
        return [json.loads(line) for line in _read(client, uri).splitlines()]
    except (WanError, ValueError):
        return []


def _record_of(client: storage.Client, uri: str) -> Mapping[str, Any] | None:
    try:
        record = json.loads(_read(client, uri))
    except (WanError, ValueError):
        return None
    return record if isinstance(record, Mapping) else None


def _read(client: storage.Client, uri: str) -> bytes:
    bucket, name = split_gs_uri(uri, name="address", needs_object=True)
    with storage_errors(f"Reading {uri}"):
        blob = client.bucket(bucket).blob(name)
        body: bytes = blob.download_as_bytes(timeout=TIMEOUT_S, retry=retry_policy(5.0))
    return body


@lru_cache(maxsize=8)
def media_of(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...] | None) -> Media:
    """Give the access with one connection's credentials, made once."""
    return Media(storage_client(gcp_conn_id, list(impersonation_chain) if impersonation_chain else None))


_known: dict[tuple[str, int], tuple[str | None, str | None]] = {}


def _landed_as(client: storage.Client, video: Video) -> tuple[str | None, str | None]:
    """Read request and checksum of an object; a generation never changes, so that is asked once."""
    key = (video.uri, video.generation)
    if key not in _known:
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        with storage_errors(f"Looking for {video.uri}", request_id=video.request_id):
            blob = client.bucket(bucket).get_blob(
                name, generation=video.generation, timeout=TIMEOUT_S, retry=retry_policy(20.0)
            )
        if blob is None:
            return None, None
        if len(_known) > 10_000:
            _known.clear()
        _known[key] = (blob.metadata or {}).get(META_REQUEST), blob.crc32c
    return _known[key]


def _pieces(response: Any) -> Iterator[bytes]:
    try:
        yield from response.iter_content(_PIECE_BYTES)
    finally:
        response.close()
