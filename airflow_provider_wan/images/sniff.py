# SPDX-License-Identifier: Apache-2.0
"""Which format a file is, by its first bytes; and, for what is no image, what it looks like instead."""

from __future__ import annotations

import re

#: Bytes that the decision needs.
SNIFF_BYTES = 512

_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)

_LOOKS_LIKE = (
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"FUJIFILM", "a camera raw file"),
    (b"IIU\x00", "a camera raw file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"RIFF", "an AVI or WAV file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)

_SUFFIXES = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "apng": "PNG", "bmp": "BMP",
    "dib": "BMP", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "heic": "HEIF", "heif": "HEIF",
    "hif": "HEIF", "avif": "AVIF",
}  # fmt: skip


def format_of(head: bytes) -> str | None:
    """Return Pillow's name of the format that these first bytes announce, None if it is no image we open."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head.startswith((b"II*\0", b"MM\0*")) and head[8:10] != b"CR":
        return "TIFF"
    return _isobmff_format(head)


def _isobmff_format(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    size = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def looks_like(head: bytes) -> str:
    """Say what a file that is no image looks like, for a message: ``"an HTML page"``."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file of zero bytes only"
    for magic, words in _LOOKS_LIKE:
        if head.startswith(magic):
            return words
    if head.startswith((b"II", b"MM")) and head[8:10] == b"CR":
        return "a camera raw file"
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime video"
    return _text_like(head)


def _text_like(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.search(rb"<svg[\s>]", text):
        return "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page (often a login or error page)"
    if text.startswith(b"<"):
        return "an XML document (often a bucket's error answer)"
    if text.startswith((b"{", b"[")):
        return "a JSON document (often an error answer)"
    printable = sum(byte >= 0x20 or byte in b"\t\n\r" for byte in head)
    return "plain text" if printable == len(head) and head.isascii() else "unknown binary data"


def format_of_suffix(name: str) -> str | None:
    """Return the format that a file's suffix claims, None without a known suffix."""
    stem, dot, suffix = name.rpartition(".")
    return _SUFFIXES.get(suffix.lower()) if dot and stem else None
