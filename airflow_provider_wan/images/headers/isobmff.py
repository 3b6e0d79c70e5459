# SPDX-License-Identifier: Apache-2.0
"""The header of HEIF (HEIC) and AVIF files: the boxes of ``meta``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.readers import Window

_MAX_META_BYTES = 512 * 1024
_MAX_TOP_BOXES = 64
#: (quarter turns counter-clockwise of ``irot``, axis of ``imir`` or None) to EXIF orientation, as MIAF applies them.
_ORIENTATIONS = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
    (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
}  # fmt: skip


@dataclass(slots=True)
class _Meta:
    """What is collected from ``meta``."""

    primary: int = 0
    item_types: dict[int, bytes] = field(default_factory=dict)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    associations: dict[int, list[int]] = field(default_factory=dict)


def _boxes(data: bytes, at: int, name: str) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            raise WanInputError(f"{name}: its header is damaged (box {kind!r} does not fit). Save it again.")
        yield kind, data[at + head : at + size]
        at += size


def read_isobmff(window: Window) -> HeaderFacts:
    """Read size, alpha, rotation and what is private of the primary picture."""
    meta = _Meta()
    is_sequence = b"avis" in (brands := window.peek(8, 40)) or b"hevc" in brands or b"msf1" in brands[:4]
    for kind, body in _boxes(_meta_body(window), 4, window.name):
        _collect(meta, kind, body, window.name)
    own = [
        meta.properties[index - 1]
        for index in meta.associations.get(meta.primary, [])
        if 0 < index <= len(meta.properties)
    ]
    sizes = [body for kind, body in own if kind == b"ispe" and len(body) >= 12]
    if not sizes:
        raise WanInputError(
            f"{window.name}: its header does not say how large the picture is; the file is damaged."
        )
    has_alpha = any(
        kind == b"auxC" and (b"alpha" in body or b"auxid:1\0" in body) for kind, body in meta.properties
    )
    bits = next((body[5] for kind, body in own if kind == b"pixi" and len(body) > 5), 8)
    return HeaderFacts(
        width=int.from_bytes(sizes[0][4:8], "big"),
        height=int.from_bytes(sizes[0][8:12], "big"),
        mode="RGBA" if has_alpha else "RGB",
        bits=bits,
        has_alpha=has_alpha,
        orientation=_orientation(own),
        is_animated=is_sequence,
        private=_private(meta),
        has_icc=any(kind == b"colr" and body[:4] in (b"prof", b"rICC") for kind, body in own),
    )


def _meta_body(window: Window) -> bytes:
    at = 0
    for _ in range(_MAX_TOP_BOXES):
        head = window.read(at, 16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if head[4:8] == b"meta":
            if size > _MAX_META_BYTES:
                break
            return window.read(at + 8, size - 8)
        if size < 8:
            break
        at += size
    raise WanInputError(
        f"{window.name}: its header has no readable description of the picture; the file is damaged."
    )


def _collect(meta: _Meta, kind: bytes, body: bytes, name: str) -> None:
    if kind == b"pitm":
        meta.primary = int.from_bytes(body[4:6] if body[0] == 0 else body[4:8], "big")
    elif kind == b"iinf":
        for inner_kind, inner in _boxes(body, 6 if body[0] == 0 else 8, name):
            if inner_kind == b"infe" and inner[:1] in (b"\2", b"\3"):
                width = 2 if inner[0] == 2 else 4
                meta.item_types[int.from_bytes(inner[4 : 4 + width], "big")] = inner[6 + width : 10 + width]
    elif kind == b"iprp":
        for inner_kind, inner in _boxes(body, 0, name):
            if inner_kind == b"ipco":
                meta.properties = list(_boxes(inner, 0, name))
            elif inner_kind == b"ipma":
                meta.associations |= _associations(inner)


def _associations(body: bytes) -> dict[int, list[int]]:
    """Read ``ipma``: item id to the 1-based numbers of its properties."""
    id_width = 4 if body[0] else 2
    wide = body[3] & 1
    found: dict[int, list[int]] = {}
    at = 8
    for _ in range(int.from_bytes(body[4:8], "big")):
        if at + id_width >= len(body):
            break
        item, count = int.from_bytes(body[at : at + id_width], "big"), body[at + id_width]
        at += id_width + 1
        step = 2 if wide else 1
        raw = body[at : at + count * step]
        mask = 0x7FFF if wide else 0x7F
        found[item] = [int.from_bytes(raw[i : i + step], "big") & mask for i in range(0, len(raw), step)]
        at += count * step
    return found


def _orientation(properties: list[tuple[bytes, bytes]]) -> int:
    turns = next((body[0] & 3 for kind, body in properties if kind == b"irot" and body), 0)
    mirror = next((body[0] & 1 for kind, body in properties if kind == b"imir" and body), None)
    return _ORIENTATIONS[(turns, mirror)]


def _private(meta: _Meta) -> tuple[str, ...]:
    types = set(meta.item_types.values())
    names = ["EXIF details"] if b"Exif" in types else []
    return tuple([*names, "XMP"] if b"mime" in types else names)
