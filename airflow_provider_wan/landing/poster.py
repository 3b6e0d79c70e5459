# SPDX-License-Identifier: Apache-2.0
"""The poster of a video: a small JPEG of one of its frames, in the object beside it."""

from __future__ import annotations

import io
import posixpath
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.hooks.gcs import META_REQUEST, call_limits, storage_errors

if TYPE_CHECKING:
    from google.cloud import storage
    from PIL import Image

#: The key of the poster's object name in a video's facts.
FACT = "poster"
#: Gives 20 to 40 KB.
_QUALITY = 80
#: A poster is not worth waiting for: how long a call may take, and for how long it is retried, in seconds.
_TIMEOUT_S, _RETRY_FOR_S = 10.0, 10.0


def poster_name(video_name: str) -> str:
    """Return the object name of a video's poster."""
    return posixpath.splitext(video_name)[0] + ".poster.jpg"


def jpeg_of(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a poster."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def put_poster(poster: bytes | storage.Blob, video: storage.Blob, request_id: str, log: Logger) -> bool:
    """Write a poster beside its video; return whether it is there. Best effort: an error is a line in the log.

    An object of that name is replaced only if it is the poster of another video.

    :param poster: its bytes, or the poster of the same video in another place, which is copied.
    :param video: the object of the video, which may not exist yet.
    :param request_id: the request of the video.
    """
    blob = video.bucket.blob(poster_name(video.name))
    uri = f"gs://{blob.bucket.name}/{blob.name}"
    try:
        with storage_errors(f"Writing {uri}"):
            return _write_unless_foreign(poster, blob, request_id, log)
    except Exception as error:  # the video is paid for: nothing about its poster may keep it out of the bucket
        log.warning("The video of request %s has no poster: %s", request_id, error)
        return False


def _limits() -> dict[str, Any]:
    return call_limits(_RETRY_FOR_S, timeout_s=_TIMEOUT_S)


def _write_unless_foreign(poster: bytes | storage.Blob, blob: storage.Blob, request_id: str, log: Logger) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    try:
        _write(poster, blob, request_id, replaces=0)
    except PreconditionFailed:
        found = blob.bucket.get_blob(blob.name, **_limits())
        owner = (found.metadata or {}).get(META_REQUEST) if found is not None else request_id
        if owner is None:
            log.warning("gs://%s/%s is not the poster of a video, and was left as it is.", blob.bucket.name, blob.name)
            return False
        if owner != request_id:
            _write(poster, blob, request_id, replaces=int(found.generation))
    return True


def _write(poster: bytes | storage.Blob, blob: storage.Blob, request_id: str, *, replaces: int) -> None:
    blob.metadata = {META_REQUEST: request_id}
    blob.content_type = "image/jpeg"
    if isinstance(poster, bytes):
        blob.upload_from_string(
            poster,
            content_type="image/jpeg",
            if_generation_match=replaces,
            **_limits(),
        )
    else:
        blob.rewrite(poster, if_generation_match=replaces, **_limits())
