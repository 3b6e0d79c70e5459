# SPDX-License-Identifier: Apache-2.0
"""The facts read from an image's header, how few bytes that takes, and what is refused there."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.codecs import UnusableImageError
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.readers import FileReader
from tests import image_samples as samples

KIB = 1024


def _rgba(alpha: int = 90) -> Image.Image:
    image = samples.photo().convert("RGBA")
    image.putalpha(alpha)
    return image


def _palette(transparent: bool) -> bytes:
    image = samples.photo().quantize(32)
    return samples.encoded(image, "PNG", **({"transparency": 3} if transparent else {}))


ORDINARY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: samples.encoded(samples.photo(), "JPEG"),
    "progressive jpeg": lambda: samples.encoded(samples.photo(), "JPEG", progressive=True),
    "grey jpeg": lambda: samples.encoded(samples.photo().convert("L"), "JPEG"),
    "cmyk jpeg": lambda: samples.encoded(samples.photo().convert("CMYK"), "JPEG"),
    "png": lambda: samples.encoded(samples.photo(), "PNG"),
    "png with alpha": lambda: samples.encoded(_rgba(), "PNG"),
    "grey png": lambda: samples.encoded(samples.photo().convert("L"), "PNG"),
    "grey png with alpha": lambda: samples.encoded(_rgba().convert("LA"), "PNG"),
    "black and white png": lambda: samples.encoded(samples.photo().convert("1"), "PNG"),
    "16-bit png": samples.sixteen_bit_png,
    "palette png": lambda: _palette(False),
    "palette png with transparency": lambda: _palette(True),
    "bmp": lambda: samples.encoded(samples.photo(), "BMP"),
    "bmp with alpha": lambda: samples.encoded(_rgba(), "BMP"),
    "palette bmp": lambda: samples.encoded(samples.photo().quantize(32), "BMP"),
    "webp": lambda: samples.encoded(samples.photo(), "WEBP"),
    "webp with alpha": lambda: samples.encoded(_rgba(), "WEBP"),
    "lossless webp": lambda: samples.encoded(samples.photo(), "WEBP", lossless=True),
    "lossless webp with alpha": lambda: samples.encoded(_rgba(), "WEBP", lossless=True),
    "animated webp": lambda: samples.animation("WEBP"),
    "animated gif": lambda: samples.animation("GIF"),
    "animated png": lambda: samples.animation("PNG"),
    "tiff": lambda: samples.encoded(samples.photo(), "TIFF"),
    "tiff with alpha": lambda: samples.encoded(_rgba(), "TIFF"),
    "cmyk tiff": lambda: samples.encoded(samples.photo().convert("CMYK"), "TIFF"),
    "grey tiff": lambda: samples.encoded(samples.photo().convert("L"), "TIFF"),
    "avif": lambda: samples.encoded(samples.photo(), "AVIF", speed=10),
    "avif with alpha": lambda: samples.encoded(_rgba(), "AVIF", speed=10),
    "mpo": lambda: samples.encoded(samples.photo(), "MPO", save_all=True, append_images=[samples.photo(100, 100)]),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_header_facts_agree_with_pillow(kind: str) -> None:
    data = ORDINARY[kind]()
    far = samples.RemoteFile(data)

    facts = inspect(far, name=kind)

    with Image.open(io.BytesIO(data)) as image:
        assert facts.format == {"MPO": "JPEG"}.get(str(image.format), image.format)
        assert (facts.width, facts.height) == image.size
        if kind != "animated webp":  # Pillow calls each animation RGBA or RGB by its first frame
            assert facts.mode == image.mode
        assert facts.has_alpha == image.has_transparency_data
        assert facts.is_animated == (kind != "mpo" and getattr(image, "n_frames", 1) > 1)
    assert facts.size_bytes == len(data)
    if facts.format in ("WEBP", "AVIF"):  # Pillow needs all of it
        assert far.bytes_read == len(data)
    else:
        assert far.bytes_read <= 16 * KIB


def test_heic_without_its_decoder_is_refused_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(_rgba()).save(buffer)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    with pytest.raises(UnusableImageError, match=r"airflow-provider-wan\[heif\]") as refused:
        inspect(samples.RemoteFile(buffer.getvalue()))
    assert [rule.rule for rule in refused.value.broken] == ["formats"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_displayed_size_follows_the_orientation(fmt: str, orientation: int) -> None:
    options = {"speed": 10} if fmt == "AVIF" else {}
    exif = samples.exif_with(orientation=orientation)
    data = samples.encoded(samples.photo(60, 40), fmt, exif=exif, **options)

    facts = inspect(samples.RemoteFile(data))

    assert facts.orientation == orientation
    expected = (40, 60) if orientation >= 5 else (60, 40)
    assert (facts.displayed_width, facts.displayed_height) == expected
    assert (facts.width, facts.height) == (60, 40)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_private_metadata_is_named(fmt: str) -> None:
    exif = samples.exif_with(gps=True, maker=True, camera=True)
    facts = inspect(samples.RemoteFile(samples.encoded(samples.photo(), fmt, exif=exif)))

    assert set(facts.private) == {"GPS position", "maker notes", "EXIF details"}


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_resolution_colour_and_orientation_are_not_private(fmt: str) -> None:
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x011A: 72.0, 0x011B: 72.0, 0x0128: 2, 0x0131: "Some Editor 3.1"})
    exif.get_ifd(0x8769)[0xA001] = 1
    assert inspect(samples.encoded(samples.photo(), fmt, exif=exif)).private == ()


def test_xmp_comments_and_text_are_private_and_a_programs_mark_is_not() -> None:
    jpeg, png = samples.encoded(samples.photo(), "JPEG"), samples.encoded(samples.photo(), "PNG")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    assert inspect(samples.with_segment(jpeg, 0xE1, xmp)).private == ("XMP",)
    assert inspect(samples.with_segment(jpeg, 0xFE, b"At home with Ada")).private == ("comment",)
    assert inspect(samples.with_segment(jpeg, 0xFE, b"CREATOR: gd-jpeg v1.0")).private == ()
    assert inspect(samples.with_png_chunk(png, b"tEXt", b"parameters\0a secret prompt")).private == ("text",)
    assert inspect(samples.with_png_chunk(png, b"tEXt", b"Software\0an editor")).private == ()


def test_metadata_of_a_jpeg_is_read_once_in_large_blocks_and_its_pixels_are_not() -> None:
    jpeg = samples.encoded(samples.photo(), "JPEG", icc_profile=b"\0" * 500_000)
    far = samples.RemoteFile(jpeg)

    facts = inspect(far)

    assert (facts.width, facts.height) == (600, 400)
    assert far.bytes_read <= len(jpeg)
    assert len(far.reads) <= 10


def test_endless_metadata_is_refused_after_16_mebibytes() -> None:
    endless = b"\xff\xd8" + (b"\xff\xe2\xff\xff" + b"a" * 65_533) * 300
    far = samples.RemoteFile(endless)
    with pytest.raises(WanInputError, match=r"pic\.jpg: its header is longer than 16,777,216 bytes"):
        inspect(far, name="pic.jpg")
    assert far.bytes_read <= 17 * 1024 * KIB


def test_tail_of_a_png_is_read_only_where_the_file_is_in_memory() -> None:
    png = samples.encoded(samples.noise(500, 500), "PNG")
    late = png[:-12] + samples.png_chunk(b"tEXt", b"Author\0somebody") + png[-12:]
    far = samples.RemoteFile(late)

    assert inspect(far).private == ()
    assert far.bytes_read <= 16 * KIB
    assert inspect(late).private == ("text",)


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (samples.HTML, "an HTML page"),
        (samples.SVG, "an SVG drawing"),
        (samples.PDF, "a PDF document"),
        (b"", "an empty file"),
        (b"\0" * 5000, "a file of zero bytes only"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "an XML document"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "an MP4 or QuickTime video"),
        (b"just words", "plain text"),
        (b"\x93\x01\x02\x03", "unknown binary data"),
    ],
)
def test_message_says_what_a_file_that_is_no_image_looks_like(data: bytes, looks_like: str) -> None:
    with pytest.raises(WanInputError) as caught:
        inspect(samples.RemoteFile(data), name="gs://shoes/summer/a b ü.jpg")
    assert str(caught.value).startswith(
        f"gs://shoes/summer/a b ü.jpg is not an image that can be used: it looks like {looks_like}"
    )


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp", "animated gif", "tiff", "avif"])
@pytest.mark.parametrize("size_known", [True, False])
def test_cut_header_is_reported_as_such(kind: str, size_known: bool) -> None:
    data = ORDINARY[kind]()
    for length in (13, 20, 25):
        with pytest.raises(WanInputError, match="cut"):
            inspect(samples.RemoteFile(data[:length], size_known=size_known), name="cut.img")


@pytest.mark.parametrize("kind", ORDINARY)
def test_no_cut_and_no_flipped_byte_of_a_header_ends_in_anything_but_our_own_error(kind: str) -> None:
    data = ORDINARY[kind]()[: 4 * KIB]
    variants = [data[:length] for length in range(0, 400, 7)]
    for at in range(0, 400, 3):
        variants += [data[:at] + bytes((value,)) + data[at + 1 :] for value in (0, 0x7F, 0xFF)]
    for variant in variants:
        try:
            inspect(samples.RemoteFile(variant))
        except WanInputError:
            continue


def test_webp_shorter_than_its_header_says_is_refused() -> None:
    data = ORDINARY["webp"]()
    with pytest.raises(WanInputError, match=r"half\.webp: the file is truncated or damaged"):
        inspect(samples.RemoteFile(data[: len(data) // 2]), name="half.webp")


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (30_000, 10), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(WanInputError, match=rf"bomb\.png: {width:,}x{height:,} px is more than is ever decoded"):
        inspect(samples.claiming_size(width, height), name="bomb.png")


def test_a_phone_photograph_of_200_megapixels_is_no_bomb() -> None:
    assert inspect(samples.jpeg_claiming_size(16_320, 12_240)).width == 16_320


def test_pillows_own_limit_is_unchanged() -> None:
    before = Image.MAX_IMAGE_PIXELS
    inspect(samples.claiming_size(9_999, 9_999))
    assert before == Image.MAX_IMAGE_PIXELS


def test_content_decides_the_format_and_a_wrong_suffix_is_reported() -> None:
    facts = inspect(ORDINARY["png"](), name="https://example.com/photo.jpg?X-Goog-Signature=abc")
    assert facts.format == "PNG"
    assert facts.notes == ("named as JPEG, and is PNG",)
    assert facts.name == "https://example.com/photo.jpg"


def test_a_path_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ein Bild ü.jpg"
    path.write_bytes(ORDINARY["jpeg"]())
    assert inspect(FileReader(str(path))).width == 600
    with pytest.raises(WanInputError, match=r"gone\.jpg can't be read: No such file"):
        inspect(FileReader(str(tmp_path / "gone.jpg")))


def test_a_camera_raw_file_is_named() -> None:
    entries = [(0x00FE, 4, 1, 1), (0x0100, 3, 1, 160), (0x0101, 3, 1, 120), (0x014A, 4, 1, 500)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    with pytest.raises(WanInputError, match="looks like a camera raw file"):
        inspect(b"II*\0\x08\0\0\0" + ifd, name="DSC_0001.tif")
