# SPDX-License-Identifier: Apache-2.0
"""Images of every odd kind, made by Pillow while the tests run, and a remote file that records what is read of it."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from airflow_provider_wan.images.readers import RangedFile
from tests.sandboxes import Bucket

PHOTOS = Path(__file__).resolve().parents[1] / "demo" / "photos"

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)


class FarFile(RangedFile):
    """A file that records each range that is read, as a bucket or a web server would see it."""

    def __init__(self, data: bytes, *, size_known: bool = True) -> None:
        super().__init__(self._range, lambda: len(data) if size_known else None)
        self._data = data
        self.reads: list[tuple[int, int]] = []

    def _range(self, start: int, length: int) -> bytes:
        part = self._data[start : start + length]
        self.reads.append((start, len(part)))
        return part

    @property
    def bytes_read(self) -> int:
        return sum(length for _, length in self.reads)


def put_gzip(bucket: Bucket, name: str, data: bytes) -> None:
    """Put an object that is stored compressed, with ``Content-Encoding: gzip``."""
    blob = bucket.client.bucket(bucket.name).blob(name)
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(data), content_type="application/octet-stream")


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@cache
def photo(width: int = 600, height: int = 400) -> Image.Image:
    """A real photograph, scaled (and stretched) to a size. Shared: copy it before changing it."""
    with Image.open(PHOTOS / "coffee.jpg") as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def noise(width: int, height: int) -> Image.Image:
    """What no encoder can make small; the same in every run."""
    return Image.frombytes("RGB", (width, height), random.Random(1).randbytes(width * height * 3))


def quadrants(width: int = 600, height: int = 400) -> Image.Image:
    """Red, green, blue and white, clockwise from the top left: shows which way is up."""
    image = Image.new("RGB", (width, height), WHITE)
    halves = width // 2, height // 2
    image.paste(RED, (0, 0, *halves))
    image.paste(GREEN, (halves[0], 0, width, halves[1]))
    image.paste(BLUE, (halves[0], halves[1], width, height))
    return image


def corners(image: Image.Image) -> tuple[str, ...]:
    """The colours of the four quadrants' middles, clockwise from the top left, in words."""
    rgb = image.convert("RGB")
    w, h = rgb.size
    points = ((w // 4, h // 4), (3 * w // 4, h // 4), (3 * w // 4, 3 * h // 4), (w // 4, 3 * h // 4))
    return tuple(_colour_word(rgb.getpixel(point)) for point in points)  # type: ignore[arg-type]


def _colour_word(pixel: tuple[int, int, int]) -> str:
    words = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}
    return min(words, key=lambda word: sum(abs(a - b) for a, b in zip(words[word], pixel, strict=True)))


def exif_with(
    *, orientation: int | None = None, gps: bool = False, maker: bool = False, camera: bool = False
) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    if camera:
        exif[0x010F] = "Example Camera Works"
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    if maker:
        exif.get_ifd(0x8769)[0x927C] = b"maker" * 20
    return exif.tobytes()


def stored_rotated(orientation: int, width: int = 600, height: int = 400) -> bytes:
    """A JPEG that a viewer shows as :func:`quadrants`, and that stores its pixels in another order."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quadrants(width, height)
    stored = image if undo is None else image.transpose(undo)
    return encoded(stored, "JPEG", quality=95, exif=exif_with(orientation=orientation))


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment right after SOI."""
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk right after its header."""
    return png[:33] + png_chunk(kind, body) + png[33:]


def claiming_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + idat + png_chunk(b"IEND", b"")


def jpeg_claiming_size(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims to be any size."""
    data = bytearray(encoded(photo(64, 64), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def sixteen_bit_png(width: int = 400, height: int = 400, value: int = 40000) -> bytes:
    return encoded(Image.new("I;16", (width, height), value), "PNG")


def animation(fmt: str, *, width: int = 400, height: int = 400) -> bytes:
    """Three frames: red, green, blue."""
    frames = [Image.new("RGB", (width, height), colour) for colour in (RED, GREEN, BLUE)]
    options: dict[str, Any] = {"lossless": True} if fmt == "WEBP" else {}
    return encoded(frames[0], fmt, save_all=True, append_images=frames[1:], duration=100, loop=0, **options)


HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>...</body></html>"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="500" height="500"/>'
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"


@cache
def swapped_profile() -> bytes:
    """An ICC profile in which red and blue change places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = struct.unpack(">I", profile[128:132])[0]
    table = profile[132 : 132 + 12 * count]
    swapped = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    entries = [table[at : at + 12] for at in range(0, len(table), 12)]
    new_table = b"".join(swapped.get(entry[:4], entry[:4]) + entry[4:] for entry in entries)
    return profile[:132] + new_table + profile[132 + len(table) :]


@cache
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def linear_grey_profile() -> bytes:
    """An ICC profile of grey without a gamma curve: 128 there is 188 in sRGB."""
    curve = b"curv" + b"\0" * 4 + struct.pack(">I", 0)
    white = b"XYZ " + b"\0" * 4 + struct.pack(">iii", 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    table = struct.pack(">I4sII4sII", 2, b"kTRC", start, len(curve), b"wtpt", start + len(curve), len(white))
    size = start + len(curve) + len(white)
    header = struct.pack(">I4xI4s4s4s", size, 0x02100000, b"mntr", b"GRAY", b"XYZ ") + b"\0" * 12 + b"acsp"
    illuminant = struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(68, b"\0") + illuminant + b"\0" * 48 + table + curve + white


def bmp_with_alpha(width: int = 400, height: int = 400) -> bytes:
    """A BMP with an alpha mask, half transparent red all over."""
    pixels = bytes((RED[2], RED[1], RED[0], 128)) * (width * height)
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    body = header + masks + b"\0" * (108 - len(header) - len(masks)) + pixels
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 108) + body
