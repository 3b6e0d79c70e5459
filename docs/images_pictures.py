# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of docs/images.md: photographs before and after ``prepare``.

    python docs/images_pictures.py

Writes ``docs/_static/images-*.jpg``; the same every time.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from airflow_provider_wan.images.prepare import prepare
from airflow_provider_wan.model_api.inputs import image_rules

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "demo" / "photos"
STATIC = ROOT / "docs" / "_static"
BOX = (300, 210)
GAP = 16
CAPTION_PX = 40


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def from_a_phone() -> bytes:
    """Its pixels stored on their side: EXIF says how to turn them, and where the photograph was taken."""
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        large = photo.convert("RGB").resize((4032, 2688), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return encoded(large.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def cut_out() -> bytes:
    """A cup for a catalogue, with nothing around it."""
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        cup = photo.convert("RGBA")
    mask = Image.new("L", cup.size, 0)
    ImageDraw.Draw(mask).ellipse((70, 15, 485, 390), fill=255)
    cup.putalpha(mask)
    return encoded(cup.crop((60, 5, 495, 395)), "PNG")


def for_print() -> bytes:
    with Image.open(PHOTOS / "rocket.jpg") as photo:
        return encoded(photo.convert("CMYK"), "JPEG", quality=90)


CASES = {
    "phone": (from_a_phone, "phone.jpg"),
    "cut-out": (cut_out, "cup.png"),
    "print": (for_print, "rocket.jpg"),
}


def as_stored(data: bytes) -> Image.Image:
    """What a program sees that takes the pixels as they are: not turned, inks for light, holes shown as a grid."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode == "CMYK":
            return Image.merge("RGB", image.split()[:3])
        if image.mode != "RGBA":
            return image.convert("RGB")
        grid = Image.new("RGB", image.size, "white")
        draw = ImageDraw.Draw(grid)
        for top in range(0, image.height, 20):
            for left in range((top // 20 % 2) * 20, image.width, 40):
                draw.rectangle((left, top, left + 19, top + 19), fill="#cfcfcf")
        grid.paste(image, mask=image.getchannel("A"))
        return grid


def framed(image: Image.Image, caption: str) -> Image.Image:
    frame = Image.new("RGB", (BOX[0], BOX[1] + CAPTION_PX), "white")
    small = image.copy()
    small.thumbnail(BOX, Image.Resampling.LANCZOS)
    frame.paste(small, ((BOX[0] - small.width) // 2, (BOX[1] - small.height) // 2))
    ImageDraw.Draw(frame).text(
        (BOX[0] // 2, BOX[1] + CAPTION_PX // 2),
        caption,
        fill="#333333",
        anchor="mm",
        font=ImageFont.load_default(15),
    )
    return frame


def main() -> None:
    rules = image_rules("wan-ai/wan-2-2/image-to-video")
    assert rules is not None
    for case, (make, name) in CASES.items():
        before = make()
        after = prepare(before, rules=rules, name=name)
        with Image.open(io.BytesIO(before)) as image:
            said = f"before: {image.width}x{image.height}, {image.mode}, {len(before) // 1000} kB"
        with Image.open(io.BytesIO(after.data)) as image:
            now = f"after: {image.width}x{image.height}, {image.mode}, {len(after.data) // 1000} kB"
            sheet = Image.new("RGB", (2 * BOX[0] + 3 * GAP, BOX[1] + CAPTION_PX + GAP), "white")
            sheet.paste(framed(as_stored(before), said), (GAP, GAP))
            sheet.paste(framed(image.convert("RGB"), now), (2 * GAP + BOX[0], GAP))
        sheet.save(STATIC / f"images-{case}.jpg", quality=82)
        print(f"images-{case}.jpg: {'; '.join(after.changes)}")


if __name__ == "__main__":
    main()
