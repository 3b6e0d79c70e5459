# SPDX-License-Identifier: Apache-2.0
"""Small pictures of source images, so that a page of them weighs kilobytes."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from airflow_provider_wan.exceptions import WanError, WanInputError

SIDE_PX = 320
_LARGEST_IMAGE_BYTES = 25_000_000
_KEPT = 500
_FAILURE_KEPT_S = 60.0


def thumbnail_of(data: bytes, *, name: str, side_px: int = SIDE_PX) -> bytes:
    """Make a small JPEG of an image.

    :raises WanInputError: it is not one, it is damaged, or it is larger than anything that is decoded here.
    """
    from PIL import Image, ImageOps

    from airflow_provider_wan.images.codecs import decoding, open_image
    from airflow_provider_wan.images.inspect import inspect

    facts = inspect(data, name=name)
    with decoding(name), open_image(io.BytesIO(data), facts) as image:
        image.draft("RGB", (2 * side_px, 2 * side_px))
        image.thumbnail((side_px, side_px))
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        flat = Image.new("RGB", upright.size, "white")
        flat.paste(upright, mask=upright.getchannel("A"))
        out = io.BytesIO()
        flat.save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()


def read_image(uri: str, *, allow_private: bool, gcp_conn_id: str | None) -> bytes:
    """Read a source image: from its bucket, or as anybody would from its public address.

    :raises WanError: it can't be read.
    """
    if uri.startswith("gs://"):
        return _from_bucket(uri, gcp_conn_id)
    if not uri.startswith(("https://", "http://")):
        raise WanInputError(f"{uri[:200]!r} is not an address of an image.")
    from airflow_provider_wan.images.http_file import UrlReader

    reader = UrlReader(uri, allow_private=allow_private, total_s=15.0)
    try:
        return reader.read(0, _LARGEST_IMAGE_BYTES)
    except WanError:
        # Records keep addresses without their signature: what was signed is read with our own credentials.
        parts = urlsplit(uri)
        if parts.hostname != "storage.googleapis.com":
            raise
        return _from_bucket(f"gs:/{unquote(parts.path)}", gcp_conn_id)
    finally:
        reader.close()


def _from_bucket(uri: str, gcp_conn_id: str | None) -> bytes:
    from airflow_provider_wan.hooks.gcs import (
        TIMEOUT_S,
        retry_policy,
        split_gs_uri,
        storage_client,
        storage_errors,
    )

    bucket, name = split_gs_uri(uri, name="image", needs_object=True)
    with storage_errors(f"Reading {uri}"):
        blob = storage_client(gcp_conn_id).bucket(bucket).blob(name)
        data: bytes = blob.download_as_bytes(
            end=_LARGEST_IMAGE_BYTES - 1, timeout=TIMEOUT_S, retry=retry_policy(15.0), checksum=None
        )
    return data


def data_uri(jpeg: bytes) -> str:
    """Give a picture as an address that carries it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


class ThumbnailCache:
    """The latest thumbnails, and for a minute that one could not be made; two are made at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[bytes | None, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Semaphore(2)

    def get(self, uri: str, read: Callable[[], bytes]) -> bytes | None:
        """Give the thumbnail of an image; None where there can be none.

        :param read: reads the image.
        """
        known = self._look_up(uri)
        if known is None:
            with self._making:
                known = self._look_up(uri) or self._make(uri, read)
        return known[0]

    def _look_up(self, uri: str) -> tuple[bytes | None, float] | None:
        with self._lock:
            known = self._kept.get(uri)
            if known is None or (known[0] is None and time.monotonic() - known[1] > _FAILURE_KEPT_S):
                return None
            self._kept.move_to_end(uri)
            return known

    def _make(self, uri: str, read: Callable[[], bytes]) -> tuple[bytes | None, float]:
        try:
            made: bytes | None = thumbnail_of(read(), name=uri)
        except WanError:
            made = None
        with self._lock:
            self._kept[uri] = known = (made, time.monotonic())
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return known
