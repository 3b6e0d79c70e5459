# SPDX-License-Identifier: Apache-2.0
"""The headers of BMP and GIF files."""

from __future__ import annotations

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.readers import Window

_BITFIELDS = (3, 6)
_MAX_GIF_BLOCKS = 4096


def read_bmp(window: Window) -> HeaderFacts:
    """Read size, mode and alpha of a BMP file."""
    header_size = int.from_bytes(window.read(14, 4), "little")
    if header_size == 12:  # OS/2
        fields = window.read(18, 8)
        width, height = int.from_bytes(fields[:2], "little"), int.from_bytes(fields[2:4], "little")
        return HeaderFacts(
            width=width,
            height=height,
            mode=_bmp_mode(int.from_bytes(fields[6:8], "little"), False),
            lossless=True,
        )
    if not 40 <= header_size <= 256:
        raise WanInputError(
            f"{window.name}: the BMP header is damaged ({header_size:,} bytes long). Save it again."
        )
    fields = window.read(18, 22)
    bits = int.from_bytes(fields[10:12], "little")
    has_alpha = (
        bits == 32
        and int.from_bytes(fields[12:16], "little") in _BITFIELDS
        and _alpha_mask(window, header_size) != 0
    )
    return HeaderFacts(
        width=abs(int.from_bytes(fields[:4], "little", signed=True)),
        height=abs(int.from_bytes(fields[4:8], "little", signed=True)),
        mode=_bmp_mode(bits, has_alpha),
        has_alpha=has_alpha,
        lossless=True,
    )


def _alpha_mask(window: Window, header_size: int) -> int:
    return int.from_bytes(window.read(14 + 52, 4), "little") if header_size >= 56 else 0


def _bmp_mode(bits: int, has_alpha: bool) -> str:
    if bits == 1:
        return "1"
    return "P" if bits <= 8 else "RGBA" if has_alpha else "RGB"


def read_gif(window: Window) -> HeaderFacts:
    """Read size, transparency and whether an animation is announced (by a loop extension)."""
    screen = window.read(6, 7)
    at = 13 + (3 << (screen[4] & 7) + 1 if screen[4] & 0x80 else 0)
    has_alpha = is_animated = False
    private: list[str] = []
    for _ in range(_MAX_GIF_BLOCKS):
        kind = window.read(at, 1)
        if kind != b"!":
            break
        label = window.read(at + 1, 1)[0]
        if label == 0xF9:
            has_alpha = bool(window.read(at + 3, 1)[0] & 1)
        elif label == 0xFE:
            private.append("comment")
        elif label == 0xFF:
            application = window.read(at + 3, 11)
            is_animated = is_animated or application in (b"NETSCAPE2.0", b"ANIMEXTS1.0")
            if application == b"XMP DataXMP":
                private.append("XMP")
        at = _after_sub_blocks(window, at + 2)
    return HeaderFacts(
        width=int.from_bytes(screen[:2], "little"),
        height=int.from_bytes(screen[2:4], "little"),
        mode="P",
        has_alpha=has_alpha,
        is_animated=is_animated,
        private=tuple(dict.fromkeys(private)),
        lossless=True,
    )


def _after_sub_blocks(window: Window, at: int) -> int:
    while length := window.read(at, 1)[0]:
        at += 1 + length
    return at + 1
