# SPDX-License-Identifier: Apache-2.0
"""Videos, images, records and status files, read with the credentials of one connection.

A browser gets a video through a short-lived signed address, or the API server streams it in ranges. It gets small
pictures of source images, which keep a page of them to kilobytes.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_wan.exceptions import WanError, WanInputError
from airflow_provider_wan.gallery.card_list import CardList
from airflow_provider_wan.gallery.run_cards import BatchStatus
from airflow_provider_wan.gallery.workers import BoundedExecutor, SharedCache
from airflow_provider_wan.hooks.gcs import (
    META_REQUEST,
    TIMEOUT_S,
    call_limits,
    split_gs_uri,
    storage_client,
    storage_errors,
)
from airflow_provider_wan.landing.poster import poster_name

if TYPE_CHECKING:
    from google.cloud import storage
    from requests import Response

log = logging.getLogger(__name__)

#: How long a signed address works: longer than one viewing of a video takes.
SIGNED_FOR = timedelta(minutes=15)
#: Seconds until new credentials of a connection are used.
_CLIENT_KEPT_S = 300.0
_ONE_RANGE = re.compile(r"bytes=(\d+-\d*|-\d+)")
_LONGEST_RECORD_BYTES = 1_000_000
_LARGEST_POSTER_BYTES = 1_000_000
_LARGEST_IMAGE_BYTES = 25_000_000
_THUMBNAIL_PX = 320
_THUMBNAILS_KEPT = 500
_THUMBNAIL_FAILURE_KEPT_S = 60.0


@dataclass(frozen=True, slots=True)
class VideoVersion:
    """A landed video.

    :param generation: the version of the object that landed; another one under that name is not shown.
    """

    uri: str
    request_id: str
    generation: int
    crc32c: str

    @property
    def etag(self) -> str:
        """Names this version in HTTP."""
        return f'"{self.generation}"'

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> VideoVersion:
        """Read it from the XCom of the task that landed it.

        :raises ValueError: a field is missing.
        """
        try:
            return cls(str(plain["uri"]), str(plain["request_id"]), int(plain["generation"]), str(plain["crc32c"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a landed video: {error!r}") from error


class Media:
    """Access to buckets with the credentials of one connection; its cached reads are shared by all viewers."""

    def __init__(self, client: storage.Client) -> None:
        self._client = client
        # Per connection: one team's data must not reach another.
        self._batches = SharedCache(64, fresh_s=10.0)
        self._records = SharedCache(1024, fresh_s=10.0)
        self._landed = SharedCache(10_000, fresh_s=3600.0)

    def images(self, batch: BatchStatus) -> CardList | None:
        """Return the images of a batch; None if its file cannot be read."""

        def read(earlier: tuple[int, CardList] | None) -> tuple[int, CardList] | None:
            try:
                blob = self._find(str(batch.uri), retry_s=5.0)
                if blob is None or (earlier and earlier[0] == int(blob.generation)):
                    return earlier if blob else None
                return int(blob.generation), CardList.of_lines(batch, io.BytesIO(read_whole(blob, retry_s=5.0)))
            except WanError as error:
                log.warning("The file of a batch cannot be read: %s", error)
                return None

        found = self._batches.get(batch, read)
        return found[1] if found else None

    def record(self, uri: str) -> Mapping[str, Any] | None:
        """Return a record of a journal; None if it cannot be read."""

        def read(_: Any) -> Mapping[str, Any] | None:
            try:
                record = json.loads(self.read(uri, max_bytes=_LONGEST_RECORD_BYTES, retry_s=5.0))
            except (WanError, ValueError):
                return None
            return record if isinstance(record, Mapping) else None

        return self._records.get(uri, read)

    def find_landed(self, uri: str, request_id: str) -> VideoVersion | None:
        """Find a video, or a poster, by its address; None if the object is not of this request."""
        blob = self._find(uri)
        if blob is None or (blob.metadata or {}).get(META_REQUEST) != request_id:
            return None
        return VideoVersion(uri, request_id, int(blob.generation), blob.crc32c)

    def is_what_landed(self, video: VideoVersion) -> bool:
        """Return whether the object is a video that the provider landed for that request.

        An XCom can name any object that this server can read. So the object decides: its metadata has the request,
        or it has the bytes of the video (a landing that found the same bytes keeps them).
        """

        def read(earlier: Any) -> tuple[str | None, str | None]:
            blob = None if earlier else self._find(video.uri, video.generation)
            return earlier or (blob and ((blob.metadata or {}).get(META_REQUEST), blob.crc32c)) or (None, None)

        request_id, crc32c = self._landed.get((video.uri, video.generation), read)
        return request_id == video.request_id or (bool(crc32c) and crc32c == video.crc32c)

    def poster(self, video: VideoVersion) -> bytes | None:
        """Read the poster of a landed video, a JPEG; None if its request has no poster."""
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        uri = f"gs://{bucket}/{poster_name(name)}"
        return self.read(uri, max_bytes=_LARGEST_POSTER_BYTES) if self.find_landed(uri, video.request_id) else None

    def signed_address(self, video: VideoVersion, *, disposition: str = "inline") -> str | None:
        """Return an address that works for a while without Airflow; None if the credentials cannot sign.

        :param disposition: the header Content-Disposition of its answer.
        """
        from google.auth.credentials import AnonymousCredentials, Signing

        credentials = self._client._credentials
        if not isinstance(credentials, Signing) or isinstance(credentials, AnonymousCredentials):
            return None
        try:
            address: str = self._blob(video.uri).generate_signed_url(
                version="v4",
                expiration=SIGNED_FOR,
                method="GET",
                generation=video.generation,
                response_disposition=disposition,
            )
        except Exception:  # signing may need a call that IAM does not allow; the server then streams the video
            return None
        return address

    def part(self, video: VideoVersion, *, range_header: str | None, if_range: str | None) -> Response:
        """Ask for a part of a video by HTTP's ranges; several ranges at once are answered with the whole.

        :raises WanStorageError: the bucket did not answer.
        """
        headers = {"Accept-Encoding": "identity"}
        if range_header and _ONE_RANGE.fullmatch(range_header.strip()) and if_range in (None, video.etag):
            headers["Range"] = range_header.strip()
        bucket, name = split_gs_uri(video.uri, name="uri", needs_object=True)
        endpoint = self._client.api_endpoint or "https://storage.googleapis.com"
        address = f"{endpoint}/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"
        address += f"?alt=media&generation={video.generation}"
        with storage_errors(f"Reading {video.uri}", request_id=video.request_id):
            found: Response = self._client._http.request(
                "GET", address, headers=headers, stream=True, timeout=TIMEOUT_S
            )
        return found

    def read(self, uri: str, *, max_bytes: int, retry_s: float = 15.0) -> bytes:
        """Read the first bytes of an object.

        :raises WanError: it cannot be read.
        """
        blob = self._blob(uri)
        with storage_errors(f"Reading {uri}"):
            data: bytes = blob.download_as_bytes(end=max_bytes - 1, **call_limits(retry_s), checksum=None)
        return data

    def _blob(self, uri: str) -> storage.Blob:
        bucket, name = split_gs_uri(uri, name="address", needs_object=True)
        return self._client.bucket(bucket).blob(name)

    def _find(self, uri: str, generation: int | None = None, *, retry_s: float = 20.0) -> storage.Blob | None:
        blob = self._blob(uri)
        with storage_errors(f"Looking for {uri}"):
            return blob.bucket.get_blob(blob.name, generation=generation, **call_limits(retry_s))


def read_whole(blob: storage.Blob, *, retry_s: float | None = None) -> bytes:
    """Read an object.

    :param retry_s: for how long to retry, in seconds; default: as all calls of Cloud Storage.
    :raises WanError: it cannot be read.
    """
    with storage_errors(f"Reading gs://{blob.bucket.name}/{blob.name}"):
        data: bytes = blob.download_as_bytes(**call_limits(retry_s))
    return data


_media = SharedCache(32, fresh_s=_CLIENT_KEPT_S)


@dataclass(frozen=True, slots=True)
class Access:
    """The credentials and permissions with which the tasks of a Dag read images and buckets."""

    wan_conn_id: str
    gcp_conn_id: str | None
    impersonation_chain: tuple[str, ...] | None
    allow_private: bool = False

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Access:
        """Read it from the rendered template fields of a task; an unset field is null there, or the word None."""
        chain = fields.get("impersonation_chain")
        accounts: tuple[str, ...] = (chain,) if isinstance(chain, str) and chain not in ("", "None") else ()
        if isinstance(chain, list | tuple):
            accounts = tuple(map(str, chain))
        gcp_conn_id = fields.get("gcp_conn_id")
        return cls(
            str(fields.get("wan_conn_id") or "wan_default"),
            None if gcp_conn_id in (None, "", "None") else str(gcp_conn_id),
            accounts or None,
        )

    def media(self) -> Media:
        """Return access to buckets."""

        def connect(_: Any) -> Media:
            chain = self.impersonation_chain
            return Media(storage_client(self.gcp_conn_id, list(chain) if chain else None))

        return _media.get((self.gcp_conn_id, self.impersonation_chain), connect)

    def reads_private_images(self) -> bool:
        """Return whether the connection allows images from private addresses; False if there is no connection."""
        from airflow_provider_wan.hooks.wan import WanHook

        try:
            return WanHook(self.wan_conn_id).settings.allow_private_images
        except Exception:  # Airflow has a different error for each secrets backend
            return False


# -- pictures ------------------------------------------------------------------------------------------------


def thumbnail_of(data: bytes, *, name: str) -> bytes:
    """Return a small JPEG of an image.

    :raises WanInputError: it is no image, it is damaged, or it is too large to be decoded here.
    """
    from PIL import Image, ImageOps

    from airflow_provider_wan.images.codecs import decoding, open_image
    from airflow_provider_wan.images.inspect import inspect

    facts = inspect(data, name=name)
    with decoding(name), open_image(io.BytesIO(data), facts.format, facts.name) as image:
        image.draft("RGB", (2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX))
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        flat = Image.new("RGB", upright.size, "white")
        flat.paste(upright, mask=upright.getchannel("A"))
        out = io.BytesIO()
        flat.save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()


def read_image(uri: str, media: Callable[[], Media], *, allow_private: bool) -> bytes:
    """Read a source image from its bucket or its public address.

    :param media: returns access to buckets.
    :raises WanError: it cannot be read.
    """
    if uri.startswith("gs://"):
        return media().read(uri, max_bytes=_LARGEST_IMAGE_BYTES)
    if not uri.startswith(("https://", "http://")):
        raise WanInputError(f"{uri[:200]!r} is not the address of an image.")
    from airflow_provider_wan.images.readers import WebReader

    reader = WebReader(uri, allow_private=allow_private, total_s=15.0)
    try:
        return reader.read(0, _LARGEST_IMAGE_BYTES)
    except WanError:
        # Records keep addresses without their signature: a signed one is read with our own credentials.
        parts = urlsplit(uri)
        if parts.hostname != "storage.googleapis.com":
            raise
        return media().read(f"gs:/{unquote(parts.path)}", max_bytes=_LARGEST_IMAGE_BYTES)
    finally:
        reader.close()


class ThumbnailCache:
    """The latest thumbnails, made in separate threads: a slow host blocks no other work.

    :param threads: number of images that are read at once.
    :param queued: number of images that may wait for that.
    """

    def __init__(self, *, threads: int = 4, queued: int = 64) -> None:
        self._executor = BoundedExecutor("wan-thumbnail", threads=threads, queued=queued)
        self._kept = SharedCache(_THUMBNAILS_KEPT, fresh_s=_THUMBNAIL_FAILURE_KEPT_S)

    def get(self, uri: str, access: Access) -> Future[bytes | None]:
        """Return the thumbnail of an image; None if none can be made.

        A failure is kept for a minute. It is kept for each connection: permissions differ.

        :raises QueueFullError: too many images wait already.
        """

        def make(earlier: Future[bytes | None] | None) -> Future[bytes | None]:
            if earlier is not None and not (earlier.done() and earlier.result() is None):
                return earlier
            return self._executor.submit(_thumbnail, uri, access)

        return self._kept.get((uri, access), make)


def _thumbnail(uri: str, access: Access) -> bytes | None:
    try:
        data = read_image(uri, access.media, allow_private=access.allow_private)
        return thumbnail_of(data, name=uri)
    except Exception:  # an image of any kind, from anywhere: the page is shown without a picture of it
        return None
