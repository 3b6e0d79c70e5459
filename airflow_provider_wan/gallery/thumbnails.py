# SPDX-License-Identifier: Apache-2.0
"""Small pictures of source images, which keep a page of them to kilobytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_wan.exceptions import WanError, WanInputError
from airflow_provider_wan.gallery.media import Media, media_of
from airflow_provider_wan.gallery.workers import BoundedExecutor, SharedCache

SIDE_PX = 320
_LARGEST_IMAGE_BYTES = 25_000_000
_KEPT = 500
_FAILURE_KEPT_S = 60.0


def thumbnail_of(data: bytes, *, name: str, side_px: int = SIDE_PX) -> bytes:
    """Return a small JPEG of an image.

    :raises WanInputError: it is no image, it is damaged, or it is too large to be decoded here.
    """
    from PIL import Image, ImageOps

    from airflow_provider_wan.images.codecs import decoding, open_image
    from airflow_provider_wan.images.inspect import inspect

    facts = inspect(data, name=name)
    with decoding(name), open_image(io.BytesIO(data), facts.format, facts.name) as image:
        image.draft("RGB", (2 * side_px, 2 * side_px))
        image.thumbnail((side_px, side_px))
        upright = ImageOps.exif_transpose(image).convert("RGBA")
        flat = Image.new("RGB", upright.size, "white")
        flat.paste(upright, mask=upright.getchannel("A"))
        out = io.BytesIO()
        flat.save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()


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
        return media_of(self.gcp_conn_id, self.impersonation_chain)

    def reads_private_images(self) -> bool:
        """Return whether the connection allows images from private addresses; False if there is no connection."""
        from airflow_provider_wan.hooks.wan import WanHook

        try:
            return WanHook(self.wan_conn_id).settings.allow_private_images
        except Exception:  # Airflow has a different error for each secrets backend
            return False


def read_image(uri: str, media: Callable[[], Media], *, allow_private: bool) -> bytes:
    """Read a source image from its bucket or its public address.

    :param media: returns access to buckets.
    :raises WanError: it cannot be read.
    """
    if uri.startswith("gs://"):
        return media().image(uri, max_bytes=_LARGEST_IMAGE_BYTES)
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
        return media().image(f"gs:/{unquote(parts.path)}", max_bytes=_LARGEST_IMAGE_BYTES)
    finally:
        reader.close()


class ThumbnailCache:
    """The latest thumbnails, made in separate threads: a slow host blocks no other work.

    :param threads: number of images that are read at once.
    :param queued: number of images that may wait for that.
    """

    def __init__(self, *, threads: int = 4, queued: int = 64) -> None:
        self._executor = BoundedExecutor("wan-thumbnail", threads=threads, queued=queued)
        self._kept = SharedCache(_KEPT, fresh_s=_FAILURE_KEPT_S)

    def get(
        self, uri: str, access: Access, read: Callable[[str, Access], bytes] | None = None
    ) -> Future[bytes | None]:
        """Return the thumbnail of an image; None if none can be made.

        A failure is kept for a minute. It is kept for each connection: permissions differ.

        :param read: reads the image; default: from its bucket or address.
        :raises QueueFullError: too many images wait already.
        """

        def make(earlier: Future[bytes | None] | None) -> Future[bytes | None]:
            if earlier is not None and not (earlier.done() and earlier.result() is None):
                return earlier
            return self._executor.submit(_make, uri, access, read or _read)

        return self._kept.get((uri, access), make)


def _read(uri: str, access: Access) -> bytes:
    return read_image(uri, access.media, allow_private=access.allow_private)


def _make(uri: str, access: Access, read: Callable[[str, Access], bytes]) -> bytes | None:
    try:
        return thumbnail_of(read(uri, access), name=uri)
    except Exception:  # an image of any kind, from anywhere: the page is shown without a picture of it
        return None
