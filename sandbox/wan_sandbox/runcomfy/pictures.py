# SPDX-License-Identifier: Apache-2.0
"""Fetches the image of a submit as RunComfy would, without any credential, and really looks at it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

_FETCH_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5, sock_read=10)
_REMEMBERED = 50_000


class BadPictureError(Exception):
    """An image that the model would not take, and why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that was fetched and found good.

    :param sha256: of the file.
    :param path: the file itself, or None where nobody will need it.
    """

    sha256: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class _Remembered:
    etag: str
    picture: Picture | None
    problem: str


class PictureDesk:
    """Fetches and judges images; remembers its judgement of an address for as long as the ETag stays.

    :param folder: where files are kept for the encoding.
    :param keep: whether to keep them.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder = folder
        self._keep = keep
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sandbox-picture")
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()

    async def close(self) -> None:
        """End the connections and the threads."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look_at(self, url: str, rules: Mapping[str, Any]) -> Picture:
        """Fetch an image and hold it against the rules of the model.

        :raises BadPictureError: it cannot be fetched, or breaks a rule.
        """
        if url.startswith("data:"):
            return await self._judge(_of_data_uri(url), rules)
        known = self._remembered.get(url)
        try:
            etag, data = await self._fetch(url, known.etag if known else "", _limit(rules))
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
            self._remembered[url] = verdict
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
                raise BadPictureError(
                    f"the image cannot be fetched: its address answers HTTP {answer.status}"
                )
            data = bytearray()
            while len(data) <= limit and (chunk := await answer.content.read(1 << 18)):
                data += chunk
            return answer.headers.get("ETag", ""), bytes(data)

    async def _judge(self, data: bytes, rules: Mapping[str, Any]) -> Picture:
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


def _limit(rules: Mapping[str, Any]) -> int:
    return int(rules.get("max_size_bytes_exclusive", 64 << 20))


def _of_data_uri(uri: str) -> bytes:
    head, _, text = uri.partition(",")
    if not head.endswith(";base64"):
        raise BadPictureError("the image is a data: URI without base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadPictureError("the image is a data: URI that cannot be decoded") from error


def judge_image(data: bytes, rules: Mapping[str, Any]) -> None:
    """Check a file against the image rules of a model's schema.

    :param rules: the schema's ``x-image``; an empty mapping only asks for an image that can be read.
    :raises BadPictureError: which rule is broken, and by what.
    """
    if len(data) >= _limit(rules):
        raise _broken(rules, "max_size_bytes_exclusive", f"it has {len(data)} bytes or more")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                _hold_against(image, rules)
                image.load()
    except BadPictureError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise BadPictureError(f"the file is no image that can be read: {type(error).__name__}") from error


def _hold_against(image: Image.Image, rules: Mapping[str, Any]) -> None:
    formats = rules.get("formats", ())
    if formats and image.format not in formats:
        raise _broken(rules, "formats", f"it is {image.format}")
    if rules.get("alpha") is False and image.has_transparency_data:
        raise _broken(rules, "alpha", f"its mode is {image.mode}")
    size = f"it is {image.width} x {image.height} px"
    if min(image.size) < rules.get("min_side_px", 1):
        raise _broken(rules, "min_side_px", size)
    if max(image.size) > rules.get("max_side_px", 1 << 30):
        raise _broken(rules, "max_side_px", size)


def _broken(rules: Mapping[str, Any], name: str, what: str) -> BadPictureError:
    """Return the message for a violated rule, in the words of the schema."""
    return BadPictureError(f"{rules.get('messages', {}).get(name, f'{name}: {rules.get(name)}')}: {what}")
