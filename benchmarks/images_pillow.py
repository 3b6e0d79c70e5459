# SPDX-License-Identifier: Apache-2.0
"""Compare our facts about image files with Pillow's, for every file of a directory.

Meant for Pillow's own test images, which contain every odd kind of image and many damaged ones::

    pip download --no-binary :all: --no-deps pillow && tar xzf pillow-*.tar.gz
    python benchmarks/images_pillow.py pillow-*/Tests/images

Each file must open, and agree with Pillow on size (as displayed), mode and orientation, or be refused with
this provider's own error; it must end within ``--most-s``; and it must be prepared, or refused in the same
way. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.inspect import ImageFacts, inspect
from airflow_provider_wan.images.prepare import prepare
from airflow_provider_wan.model_api.schema import Model

(RULES,) = Model.bundled("wan-ai/wan-2-2/image-to-video").images


def by_pillow(path: Path, fmt: str) -> tuple[tuple[int, int], str, int]:
    """Return size as displayed, mode and orientation, according to Pillow."""
    if fmt == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    with Image.open(path, formats=[fmt]) as image:
        mode, orientation = image.mode, Image.Image.getexif(image).get(0x0112, 1)
        if fmt in ("TIFF", "HEIF"):  # already turned upright by Pillow
            return image.size, mode, orientation
        return _displayed(image), mode, orientation


def _displayed(image: Image.Image) -> tuple[int, int]:
    orientation = Image.Image.getexif(image).get(0x0112, 1)
    small = Image.new("1", image.size)
    small.getexif()[0x0112] = orientation
    turned: Any = ImageOps.exif_transpose(small)
    return turned.size  # type: ignore[no-any-return]


def differences(path: Path, facts: ImageFacts) -> list[str]:
    """Return the facts that differ from Pillow's."""
    size, mode, orientation = by_pillow(path, facts.format)
    ours = facts.displayed_width, facts.displayed_height
    # Orientation that is not from EXIF is in the notes instead.
    if any("not applied" in note for note in facts.notes):
        size, orientation = ours, 1
    if facts.format == "HEIF" or orientation not in range(1, 9):
        orientation = facts.orientation
    pairs = {
        "size": (ours, size),
        "mode": (facts.mode, mode),
        "orientation": (facts.orientation, orientation),
    }
    return [f"{name}: {a}, Pillow {b}" for name, (a, b) in pairs.items() if a != b]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--most-s", type=int, default=20)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    slowest = (0.0, "")
    for path in sorted(path for path in arguments.directory.rglob("*") if path.is_file()):
        began = time.monotonic()
        signal.alarm(arguments.most_s)  # Without a handler the signal ends the process: a hang is a failure.
        try:
            facts = inspect(path.read_bytes(), name=path.name)
        except WanInputError:
            counts["refused"] += 1
        except Exception as error:
            counts["WRONG"] += 1
            print(f"{path.name}: {type(error).__name__}: {error}")
        else:
            different = differences(path, facts)
            counts["WRONG" if different else "opened"] += 1
            if different:
                print(f"{path.name}: {'; '.join(different)}")
        try:
            prepare(path.read_bytes(), rules=RULES)  # type: ignore[arg-type]
            counts["prepared"] += 1
        except WanInputError:
            counts["not prepared"] += 1
        except Exception as error:
            counts["WRONG"] += 1
            print(f"{path.name}, preparing: {type(error).__name__}: {error}")
        signal.alarm(0)
        slowest = max(slowest, (time.monotonic() - began, path.name))
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"slowest: {slowest[0]:.1f} s ({slowest[1]})")
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
