# SPDX-License-Identifier: Apache-2.0
"""Fetches the images of a submit as RunComfy does, without credentials, and decodes and checks them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

_FETCH_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5, sock_read=10)
_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What a model asks of an image; the default asks only for an image that can be read.

    :param formats: format names as Pillow has them; empty for any.
    :param alpha: whether an alpha channel is accepted.
    :param min_side_px: the least width and height.
    :param max_side_px: the greatest width and height.
    :param min_aspect: the least ratio of width to height.
    :param max_aspect: the greatest ratio of width to height.
    :param max_size_bytes_exclusive: the file must be smaller.
    """

    formats: tuple[str, ...] = ()
    alpha: bool = True
    min_side_px: int | None = None
    max_side_px: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    max_size_bytes_exclusive: int = 64 << 20

    @classmethod
    def from_json(cls, rules: Mapping[str, Any]) -> ImageRules:
        """Read the keyword ``x-image`` of a schema."""
        known = {name: value for name, value in rules.items() if name in cls.__slots__}
        return cls(**{**known, "formats": tuple(rules.get("formats", ()))})

    @property
    def formats_text(self) -> str:
        """The formats in words."""
        *most, last = self.formats
        return f"{', '.join(most)} or {last}{'' if self.alpha else ' without alpha'}"

    @property
    def size_text(self) -> str:
        """The rule for the size of the file in words."""
        return f"the file must be smaller than {self.max_size_bytes_exclusive / 1e6:g} MB"

    def validations(self) -> Iterator[tuple[str, float, str]]:
        """Yield (rule, value, message) as a model's page has them; a side or ratio at its limit is accepted."""
        if self.max_size_bytes_exclusive != 64 << 20:
            yield "file_size_mb<", self.max_size_bytes_exclusive / 1e6, self.size_text
        for sign, side_px, side_text in (
            ("<", self.max_side_px, "must not exceed"),
            (">", self.min_side_px, "must be at least"),
        ):
            if side_px is not None:
                for side in ("width_pixels", "height_pixels"):
                    yield f"{side}{sign}", side_px, f"width and height {side_text} {side_px} px"
        for sign, ratio, ratio_text in (
            ("<", self.max_aspect, "must not exceed"),
            (">", self.min_aspect, "must be at least"),
        ):
            if ratio is not None:
                yield f"width/height{sign}", ratio, f"width divided by height {ratio_text} {ratio:g}"


class BadPictureError(Exception):
    """The model refuses the image; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that was fetched and accepted.

    :param sha256: of the file.
    :param path: the file, or None if no video is encoded from it.
    """

    sha256: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class _Remembered:
    etag: str
    picture: Picture | None
    problem: str


class PictureDesk:
    """Fetches and checks images; remembers the verdict about an address while its ETag stays the same.

    :param folder: where files are stored for the encoder.
    :param keep: whether to keep them.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder = folder
        self._keep = keep
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sandbox-picture")
        self._remembered: OrderedDict[tuple[str, ImageRules], _Remembered] = OrderedDict()

    async def close(self) -> None:
        """End the connections and the threads."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look_at(self, url: str, rules: ImageRules) -> Picture:
        """Fetch an image and check it by the rules of the model.

        :raises BadPictureError: it cannot be fetched, or breaks a rule.
        """
        if url.startswith("data:"):
            return await self._judge(_of_data_uri(url), rules)
        known = self._remembered.get((url, rules))
        try:
            etag, data = await self._fetch(url, known.etag if known else "", rules.max_size_bytes_exclusive)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise BadPictureError(f"the image cannot be fetched: {type(error).__name__}") from error
        if data is None and known is not None:
            return _answer(known)
        try:
            picture, problem = await self._judge(data or b"", rules), ""
        except BadPictureError as error:
            picture, problem = None, str(error)
        verdict = _Remembered(etag, picture, problem)
        if etag:
            self._remembered[(url, rules)] = verdict
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return _answer(verdict)

    async def _fetch(self, url: str, etag: str, limit: int) -> tuple[str, bytes | None]:
        """Return (ETag, file), or (ETag, None) if the file has not changed."""
        if self._session is None:
            # No trust_env: it would add credentials from a .netrc, and this must be an anonymous GET.
            self._session = aiohttp.ClientSession(
                timeout=_FETCH_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        headers = {"If-None-Match": etag} if etag else {}
        async with self._session.get(url, headers=headers, max_redirects=5) as answer:
            if answer.status == 304:
                return etag, None
            if answer.status != 200:
                raise BadPictureError(f"the image cannot be fetched: its address answers HTTP {answer.status}")
            data = bytearray()
            while len(data) <= limit and (chunk := await answer.content.read(1 << 18)):
                data += chunk
            return answer.headers.get("ETag", ""), bytes(data)

    async def _judge(self, data: bytes, rules: ImageRules) -> Picture:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, judge_image, data, rules)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._folder / f"{sha256}.image" if self._keep else None
        if path is not None and not path.exists():
            await loop.run_in_executor(self._threads, path.write_bytes, data)
        return Picture(sha256, path)


def _answer(verdict: _Remembered) -> Picture:
    if verdict.picture is None:
        raise BadPictureError(verdict.problem)
    return verdict.picture


def _of_data_uri(uri: str) -> bytes:
    head, _, text = uri.partition(",")
    if not head.endswith(";base64"):
        raise BadPictureError("the image is a data: URI without base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadPictureError("the image is a data: URI that cannot be decoded") from error


def judge_image(data: bytes, rules: ImageRules) -> None:
    """Check a file against the image rules of a model.

    :raises BadPictureError: which rule is broken, and by what.
    """
    if len(data) >= rules.max_size_bytes_exclusive:
        raise BadPictureError(f"{rules.size_text}: it has {len(data)} bytes or more")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                _check_header(image, rules)
                image.load()
    except BadPictureError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise BadPictureError(f"the file is no image that can be read: {type(error).__name__}") from error


def _check_header(image: Image.Image, rules: ImageRules) -> None:
    if rules.formats and image.format not in rules.formats:
        raise BadPictureError(f"the image must be a {rules.formats_text} file: it is {image.format}")
    if not rules.alpha and image.has_transparency_data:
        raise BadPictureError(f"the image must not have an alpha channel: its mode is {image.mode}")
    values = {
        "width_pixels": image.width,
        "height_pixels": image.height,
        "width/height": image.width / image.height,
    }
    for rule, limit, message in rules.validations():
        value = values.get(rule[:-1], limit)
        if value > limit if rule.endswith("<") else value < limit:
            raise BadPictureError(f"{message}: it is {image.width} x {image.height} px")
