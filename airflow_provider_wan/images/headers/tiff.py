# SPDX-License-Identifier: Apache-2.0
"""TIFF directories: the header of a TIFF file, and of the EXIF block inside every other format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.readers import Window

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 0x0100, 0x0101, 0x0102, 0x0103, 0x0106
_ORIENTATION, _SAMPLES, _EXTRA_SAMPLES, _ICC = 0x0112, 0x0115, 0x0152, 0x8773
_SUBFILE, _SUB_IFDS, _DNG_VERSION = 0x00FE, 0x014A, 0xC612
_EXIF_IFD, _GPS_IFD, _MAKER_NOTE, _IPTC, _PHOTOSHOP, _XMP = 0x8769, 0x8825, 0x927C, 0x83BB, 0x8649, 0x02BC
_MAX_ENTRIES = 1000

#: Names for what tells more than a picture needs to.
_PRIVATE_NAMES = {
    _GPS_IFD: "GPS position",
    _MAKER_NOTE: "maker notes",
    _XMP: "XMP",
    _IPTC: "IPTC",
    _PHOTOSHOP: "Photoshop resources",
}
#: Tags about the pixels only (sizes, strips, colour, resolution) or about the software that wrote them.
_HARMLESS = frozenset(
    {*range(0x00FE, 0x010D), 0x0111, 0x0112, 0x0115, 0x0116, 0x0117, 0x0118, 0x0119, 0x011A, 0x011B, 0x011C}
    | {0x0122, 0x0123, 0x0124, 0x0125, 0x0128, 0x012D, 0x0131, 0x013D, 0x013E, 0x013F, 0x0140}
    | {*range(0x0142, 0x0146), _SUB_IFDS, 0x014C, 0x0152, 0x0153, 0x0154, 0x0155, 0x015B}
    | {*range(0x0200, 0x020A), 0x0211, 0x0212, 0x0213, 0x0214, _EXIF_IFD, _ICC}
    | {0x9000, 0x9101, 0x9102, 0xA000, 0xA001, 0xA002, 0xA003, 0xA005, 0xA500}
)
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


@dataclass(frozen=True, slots=True)
class ExifFacts:
    """What matters of an EXIF block: which way is up, and what should not be published."""

    orientation: int = 1
    private: tuple[str, ...] = ()


class _Directory:
    """The entries of one directory: tag to (type, count, raw value field)."""

    def __init__(self, window: Window, base: int, offset: int, order: str) -> None:
        self._window, self._base, self._order = window, base, order
        count = self._int(window.read(base + offset, 2))
        if count > _MAX_ENTRIES:
            raise WanInputError(
                f"{window.name}: its TIFF directory claims {count:,} entries; the file is damaged."
            )
        raw = window.read(base + offset + 2, count * 12 + 4)
        self.next_offset = self._int(raw[-4:])
        self._entries = {
            self._int(raw[at : at + 2]): (
                self._int(raw[at + 2 : at + 4]),
                self._int(raw[at + 4 : at + 8]),
                raw[at + 8 : at + 12],
            )
            for at in range(0, count * 12, 12)
        }

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def values(self, tag: int, *, at_most: int = 8) -> tuple[int, ...]:
        """Return the first integers of a tag, empty where it is absent or no integer."""
        kind, count, field = self._entries.get(tag, (0, 0, b""))
        width = {1: 1, 3: 2, 4: 4, 13: 4}.get(kind)
        if width is None:
            return ()
        taken = min(count, at_most)
        raw = field if count * width <= 4 else self._window.read(self._base + self._int(field), taken * width)
        return tuple(self._int(raw[at * width : (at + 1) * width]) for at in range(taken))

    def value(self, tag: int, default: int = 0) -> int:
        """Return the first integer of a tag."""
        values = self.values(tag, at_most=1)
        return values[0] if values else default

    def _int(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little" if self._order == "II" else "big")


def _first_directory(window: Window, base: int) -> tuple[_Directory, str]:
    head = window.read(base, 8)
    order = {b"II*\0": "II", b"MM\0*": "MM"}.get(head[:4])
    if order is None:
        raise WanInputError(
            f"{window.name}: its EXIF or TIFF block does not start as one; the file is damaged."
        )
    offset = int.from_bytes(head[4:], "little" if order == "II" else "big")
    return _Directory(window, base, offset, order), order


def read_exif(window: Window, base: int) -> ExifFacts:
    """Read the EXIF block that starts at ``base``.

    A damaged block is no reason to refuse an image: viewers show it upright, and so is it treated; that it is
    damaged makes it something to remove.
    """
    try:
        first, order = _first_directory(window, base)
        private = _private_of(first)
        if pointer := first.value(_EXIF_IFD):
            private += _private_of(_Directory(window, base, pointer, order))
        if first.next_offset:
            private.append("EXIF thumbnail")
        orientation = first.value(_ORIENTATION, 1)
    except WanInputError:
        return ExifFacts(private=("unreadable EXIF",))
    return ExifFacts(orientation if 1 <= orientation <= 8 else 1, tuple(dict.fromkeys(private)))


def _private_of(directory: _Directory) -> list[str]:
    return [_PRIVATE_NAMES.get(tag, "EXIF details") for tag in directory if tag not in _HARMLESS]


def read_tiff(window: Window) -> HeaderFacts:
    """Read the first picture's directory of a TIFF file.

    :raises WanInputError: damaged, or a camera's raw file, whose first picture is a thumbnail.
    """
    first, order = _first_directory(window, 0)
    if _DNG_VERSION in first or (first.value(_SUBFILE) & 1 and _SUB_IFDS in first):
        raise WanInputError(f"{window.name} looks like a camera raw file. Export it as JPEG or PNG first.")
    private = _private_of(first)
    if pointer := first.value(_EXIF_IFD):
        private += _private_of(_Directory(window, 0, pointer, order))
    bits = max(first.values(_BITS), default=1)
    mode, has_alpha = _tiff_mode(first, bits)
    orientation = first.value(_ORIENTATION, 1)
    return HeaderFacts(
        width=first.value(_WIDTH),
        height=first.value(_HEIGHT),
        mode=mode,
        bits=bits,
        has_alpha=has_alpha,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        is_animated=first.next_offset != 0,
        private=tuple(dict.fromkeys(private)),
        has_icc=_ICC in first,
        lossless=first.value(_COMPRESSION, 1) not in (6, 7),
    )


def _tiff_mode(directory: _Directory, bits: int) -> tuple[str, bool]:
    """Return Pillow's mode, and whether there is an alpha channel (extra sample 1 or 2)."""
    samples = directory.value(_SAMPLES, 1)
    has_alpha = bool({1, 2} & set(directory.values(_EXTRA_SAMPLES)))
    photometric = directory.value(_PHOTOMETRIC)
    if photometric in (2, 6):
        return ("RGBA" if has_alpha else "RGB"), has_alpha
    if photometric == 3:
        return ("PA" if has_alpha else "P"), has_alpha
    if photometric == 5:
        return "CMYK", has_alpha
    if photometric == 8:
        return "LAB", has_alpha
    if bits == 1:
        return "1", has_alpha
    if bits == 16 and samples == 1:
        return "I;16", has_alpha
    return ("LA" if has_alpha else "L"), has_alpha
