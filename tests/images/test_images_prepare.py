# SPDX-License-Identifier: Apache-2.0
"""Preparation of images that the model would refuse, and of images that it accepts."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.prepare import PreparedFile, check, prepare
from airflow_provider_wan.model_api.schema import ImageRules, Model
from tests import image_samples as samples

(FOUND,) = Model.bundled("wan-ai/wan-2-2/image-to-video").images
assert FOUND is not None
RULES: ImageRules = FOUND


def _prepared(data: bytes, **options: object) -> PreparedFile:
    """Prepare an image, and check what must hold for every result."""
    result = prepare(data, rules=RULES, name="pic", **options)  # type: ignore[arg-type]
    facts = inspect(result.data)
    assert check(facts, RULES) == ()
    assert not facts.private
    assert (facts.format, facts.width, facts.height) == (result.format, result.width, result.height)
    assert (facts.mode, facts.orientation, facts.is_animated) == ("RGB", 1, False)
    assert result.sha256 == hashlib.sha256(result.data).hexdigest()
    assert (not result.changes) == (result.data == data)
    return result


def _pixels(result: PreparedFile) -> Image.Image:
    with Image.open(io.BytesIO(result.data)) as image:
        image.load()
        return image


def _colour(result: PreparedFile) -> tuple[int, int, int]:
    pixel = _pixels(result).getpixel((result.width // 2, result.height // 2))
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


# --- passed through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "WEBP"])
def test_an_image_that_fits_is_passed_through_byte_for_byte(fmt: str) -> None:
    data = samples.encoded(samples.photo(), fmt)
    result = _prepared(data)
    assert (result.data, result.changes) == (data, ())
    assert result.content_type == f"image/{fmt.lower()}"


@pytest.mark.parametrize("photo", ["astronaut.jpg", "coffee.jpg", "hubble_deep_field.jpg", "rocket.jpg"])
def test_the_demo_photographs_that_fit_are_passed_through(photo: str) -> None:
    data = (samples.PHOTOS / photo).read_bytes()
    assert prepare(data, rules=RULES).data == data


@pytest.mark.parametrize(("width", "height"), [(360, 360), (2000, 2000), (2000, 360)])
def test_image_exactly_at_the_limits_is_passed_through(width: int, height: int) -> None:
    data = samples.encoded(Image.new("RGB", (width, height), samples.RED), "PNG")
    assert _prepared(data).data == data


def test_progressive_icc_and_resolution_are_no_reason_to_touch_a_file() -> None:
    data = samples.encoded(
        samples.photo(), "JPEG", progressive=True, dpi=(300, 300), icc_profile=samples.srgb_profile()
    )
    assert _prepared(data).data == data


# --- private metadata -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_a_gps_position_is_removed_and_the_pixels_stay_the_same_to_the_bit(fmt: str) -> None:
    exif = samples.exif_with(gps=True, maker=True, camera=True)
    data = samples.encoded(samples.photo(), fmt, exif=exif, icc_profile=samples.srgb_profile())

    result = _prepared(data)

    assert b"Example Camera Works" in data
    assert b"Example Camera Works" not in result.data
    assert _pixels(result).getexif() == {}
    with Image.open(io.BytesIO(data)) as before:
        assert _pixels(result).tobytes() == before.tobytes()
    assert _pixels(result).info["icc_profile"] == samples.srgb_profile()
    assert result.changes == ("removed EXIF details, GPS position, maker notes",)


def test_other_metadata_and_data_behind_the_picture_are_removed() -> None:
    jpeg = samples.encoded(samples.photo(), "JPEG", progressive=True)
    busy = samples.with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    busy = samples.with_segment(busy, 0xED, b"Photoshop 3.0\x008BIM")
    busy = samples.with_segment(busy, 0xFE, b"At home with Ada")
    assert _prepared(busy + b"ftypmp4 a motion photograph's video").data == jpeg

    png = samples.encoded(samples.photo(), "PNG")
    busy = samples.with_png_chunk(png, b"tEXt", b"Author\0Ada")
    busy = samples.with_png_chunk(busy, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>")
    assert _prepared(busy + b"hidden archive").data == png


def test_reencoded_image_has_no_metadata() -> None:
    exif = samples.exif_with(gps=True, camera=True, orientation=6)
    data = samples.encoded(samples.photo(3000, 2000), "JPEG", exif=exif, comment=b"At home with Ada")

    result = _prepared(data)

    assert set(_pixels(result).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert "removed" in " ".join(result.changes)


# --- upright --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(600, 400), (3000, 2001)])
def test_every_orientation_is_applied_to_the_pixels(orientation: int, size: tuple[int, int]) -> None:
    result = _prepared(samples.stored_rotated(orientation, *size))
    assert samples.corners(_pixels(result)) == ("red", "green", "blue", "white")
    assert (result.width, result.height) == ((600, 400) if size == (600, 400) else (1999, 1333))


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_orientation_is_applied_in_every_format(fmt: str) -> None:
    stored = samples.quadrants().transpose(Image.Transpose.ROTATE_90)
    options = {"speed": 10} if fmt == "AVIF" else {}
    data = samples.encoded(stored, fmt, exif=samples.exif_with(orientation=6), **options)
    result = _prepared(data)
    assert samples.corners(_pixels(result)) == ("red", "green", "blue", "white")


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: samples.encoded(Image.new("L", (400, 400), 100), "PNG"), (100, 100, 100)),
        (lambda: samples.encoded(Image.new("L", (400, 400), 100), "JPEG"), (100, 100, 100)),
        (lambda: samples.encoded(Image.new("1", (400, 400), 1), "PNG"), (255, 255, 255)),
        (lambda: samples.sixteen_bit_png(value=40_000), (156, 156, 156)),
        (lambda: samples.sixteen_bit_png(value=65_535), (255, 255, 255)),
        (lambda: samples.encoded(Image.new("CMYK", (400, 400), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (lambda: samples.encoded(Image.new("CMYK", (400, 400), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (lambda: samples.encoded(Image.new("LA", (400, 400), (100, 128)), "PNG"), (177, 177, 177)),
        (lambda: samples.encoded(Image.new("LA", (400, 400), (100, 0)), "PNG"), (255, 255, 255)),
        (lambda: samples.encoded(Image.new("RGBA", (400, 400), (220, 30, 30, 128)), "PNG"), (237, 142, 142)),
        (lambda: samples.encoded(Image.new("RGBA", (400, 400), (220, 30, 30, 0)), "TIFF"), (255, 255, 255)),
        (lambda: samples.encoded(Image.new("RGB", (400, 400), samples.RED).quantize(4), "PNG"), samples.RED),
        (lambda: samples.encoded(Image.new("RGB", (400, 400), samples.RED), "TIFF"), samples.RED),
        (lambda: samples.encoded(Image.new("LAB", (400, 400), (128, 128, 128)), "TIFF"), (119, 119, 119)),
        (samples.bmp_with_alpha, (237, 142, 142)),
        (lambda: samples.animation("GIF"), samples.RED),
        (lambda: samples.animation("WEBP"), samples.RED),
        (lambda: samples.animation("PNG"), samples.RED),
        (lambda: samples.encoded(Image.new("RGB", (400, 400), samples.RED), "AVIF", speed=10), samples.RED),
        (
            lambda: samples.encoded(
                Image.new("RGB", (400, 400), samples.RED), "PNG", icc_profile=samples.swapped_profile()
            ),
            samples.RED,  # it fits: passed through, with its profile
        ),
        (
            lambda: samples.encoded(
                Image.new("RGB", (2400, 2400), samples.RED), "PNG", icc_profile=samples.swapped_profile()
            ),
            (30, 30, 220),
        ),
        (
            lambda: samples.encoded(
                Image.new("RGBA", (400, 400), (*samples.RED, 0)), "PNG", icc_profile=samples.swapped_profile()
            ),
            (255, 255, 255),
        ),
        (
            lambda: samples.encoded(Image.new("L", (400, 400), 128), "PNG", icc_profile=samples.linear_grey_profile()),
            (188, 188, 188),
        ),
        (
            lambda: samples.encoded(Image.new("L", (400, 400), 128), "JPEG", icc_profile=samples.srgb_profile()),
            (128, 128, 128),
        ),
    ],
)
def test_any_pixels_become_rgb_of_the_same_colour(make: Callable[[], bytes], expected: tuple[int, int, int]) -> None:
    colour = _colour(_prepared(make()))
    assert max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 3


@pytest.mark.parametrize(("background", "expected"), [("black", (0, 0, 0)), ("#102030", (16, 32, 48))])
def test_transparent_parts_show_the_chosen_background(background: str, expected: tuple[int, int, int]) -> None:
    palette = Image.new("P", (400, 400), 3)
    palette.putpalette([0, 0, 0] * 3 + [220, 30, 30])
    data = samples.encoded(palette, "PNG", transparency=3)
    result = _prepared(data, background=background)
    assert _colour(result) == expected
    assert any(change.startswith("transparency flattened on #") for change in result.changes)


def test_invalid_background_is_refused() -> None:
    with pytest.raises(WanInputError, match="background: 'whitish' is no colour"):
        prepare(samples.encoded(samples.photo(), "PNG"), rules=RULES, background="whitish")


def test_a_broken_profile_does_not_stop_an_image() -> None:
    data = samples.encoded(Image.new("L", (400, 400), 100), "PNG", icc_profile=b"no profile at all" * 20)
    result = _prepared(data)
    assert _colour(result) == (100, 100, 100)
    assert "unreadable ICC profile ignored" in result.changes


def test_samples_of_32_bits_are_refused() -> None:
    with pytest.raises(WanInputError, match=r"pic would be refused: .* 32 bits a channel"):
        _prepared(samples.encoded(Image.new("F", (400, 400), 0.5), "TIFF"))


def test_animation_reports_how_many_frames_were_dropped() -> None:
    assert _prepared(samples.animation("GIF")).changes[0] == "first of 3 frames"


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (1999, 1499)),
        ((2001, 400), (1999, 400)),
        ((451, 300), (543, 361)),
        ((300, 300), (361, 361)),
    ],
)
@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_a_size_outside_is_scaled_to_strictly_inside(
    fmt: str, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    result = _prepared(samples.encoded(samples.quadrants(*size), fmt))
    assert (result.width, result.height) == expected
    assert result.format == fmt
    assert samples.corners(_pixels(result)) == ("red", "green", "blue", "white")
    assert result.changes[0] == f"scaled from {size[0]}x{size[1]} to {expected[0]}x{expected[1]}"


def test_small_images_are_refused_where_enlarging_is_off() -> None:
    with pytest.raises(
        WanInputError,
        match=r"pic would be refused: it is 300x300 px, .*a side is under 360 px, and enlarging is off",
    ):
        _prepared(samples.encoded(samples.photo(300, 300), "JPEG"), too_small="reject")


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 1), "too small even to enlarge"), ((2000, 100), "crop it"), ((1, 4000), "crop it")],
)
def test_size_that_cannot_be_scaled_is_refused_with_its_reason(size: tuple[int, int], message: str) -> None:
    with pytest.raises(WanInputError, match=rf"pic would be refused: it is {size[0]}x{size[1]} px.*{message}"):
        _prepared(samples.encoded(Image.new("RGB", size), "PNG"))


def test_a_photograph_over_ten_megabytes_is_encoded_again() -> None:
    data = samples.encoded(samples.noise(1900, 1900), "JPEG", quality=100, subsampling=0)
    assert len(data) >= 10_000_000
    result = _prepared(data)
    assert (result.width, result.height, result.format) == (1900, 1900, "JPEG")


def test_lossless_stays_lossless_until_it_would_not_fit() -> None:
    small = _prepared(samples.encoded(samples.noise(500, 400), "TIFF"))
    large = _prepared(samples.encoded(samples.noise(1900, 1900), "BMP"))
    assert (small.format, large.format) == ("PNG", "JPEG")


def test_quality_goes_down_only_as_far_as_needed_and_ends_in_a_clear_error() -> None:
    data = samples.encoded(samples.noise(800, 800), "JPEG", quality=100)
    tight = replace(RULES, max_size_bytes_exclusive=450_000)
    result = prepare(data, rules=tight)
    assert 250_000 < len(result.data) < 450_000
    assert "quality" in result.changes[-1]
    with pytest.raises(WanInputError, match="cannot be written in a format that the model takes"):
        prepare(data, rules=replace(RULES, max_size_bytes_exclusive=1_000), name="pic")


# --- HEIC -----------------------------------------------------------------------------------------------------------


def _heic(image: Image.Image) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=90)
    return buffer.getvalue()


def test_heic_becomes_jpeg() -> None:
    result = _prepared(_heic(samples.quadrants(2400, 1600)))
    assert (result.format, result.width, result.height) == ("JPEG", 1999, 1333)
    assert samples.corners(_pixels(result)) == ("red", "green", "blue", "white")


def test_heic_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _heic(samples.photo())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(WanInputError, match=r"pic: HEIC needs the extra: pip install 'airflow-provider-wan\[heif\]'"):
        prepare(data, rules=RULES, name="pic")


# --- hostile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "AVIF"])
@pytest.mark.parametrize("size", [(600, 400), (2100, 900)])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_a_truncated_file_is_refused_whether_it_fits_or_not(fmt: str, size: tuple[int, int], part: float) -> None:
    options = {"speed": 10} if fmt == "AVIF" else {}
    data = samples.encoded(samples.photo(*size), fmt, **options)
    with pytest.raises(WanInputError, match=r"^cut\.img: .*(truncated|cut off)"):
        prepare(data[: int(len(data) * part)], rules=RULES, name="cut.img")


@pytest.mark.parametrize("data", [samples.HTML, samples.SVG, samples.PDF, b"", b"\0" * 100])
def test_file_that_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(WanInputError, match=r"^photo\.jpg is not an image that can be used: it looks like "):
        prepare(data, rules=RULES, name="photo.jpg")


def test_a_bomb_is_never_decoded() -> None:
    for bomb in (samples.claiming_size(30_000, 30_000), samples.jpeg_claiming_size(30_000, 20_000)):
        with pytest.raises(WanInputError, match="more than is ever decoded here"):
            prepare(bomb, rules=RULES)


def test_a_file_that_claims_a_size_without_the_pixels_is_refused() -> None:
    with pytest.raises(WanInputError, match="truncated or damaged"):
        prepare(samples.claiming_size(4000, 3000), rules=RULES)


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_damaged_header_ends_in_our_own_error_or_an_image() -> None:
    for fmt in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = samples.encoded(samples.photo(400, 380), fmt)
        for at in range(20, 400, 23):
            broken = data[:at] + b"\xff\x00\x7f" + data[at + 3 :]
            try:
                prepare(broken, rules=RULES)
            except WanInputError:
                continue


# --- promises -------------------------------------------------------------------------------------------------------


def test_preparation_is_deterministic() -> None:
    data = samples.encoded(
        samples.photo(2600, 1800),
        "JPEG",
        exif=samples.exif_with(orientation=6),
        icc_profile=samples.swapped_profile(),
    )
    assert _prepared(data).data == _prepared(data).data


def test_prepared_image_is_passed_through_unchanged() -> None:
    once = _prepared(samples.encoded(samples.photo(2600, 1800), "TIFF"))
    assert not _prepared(once.data).changes


def test_wrong_suffix_is_reported_and_the_image_unchanged() -> None:
    data = samples.encoded(samples.photo(), "PNG")
    result = prepare(data, rules=RULES, name="photo.jpg")
    assert (result.data, result.notes) == (data, ("named as JPEG, and is PNG",))


def test_a_pixel_too_many_is_cut_off_and_the_others_stay_sharp() -> None:
    source = samples.encoded(samples.noise(4000, 3000), "JPEG", quality=90)
    with Image.open(io.BytesIO(source)) as image:
        image.draft("RGB", (1999, 1499))
        decoded = image.crop((0, 0, 1999, 1499)).convert("L")
    with Image.open(io.BytesIO(_prepared(source).data)) as image:
        assert image.size == decoded.size
        difference = ImageChops.difference(image.convert("L"), decoded)
    assert ImageStat.Stat(difference).mean[0] < 3
