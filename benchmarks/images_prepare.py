# SPDX-License-Identifier: Apache-2.0
"""Prepare 12-megapixel photographs in threads against a plain Pillow loop, both in JPEG draft mode.

    python benchmarks/images_prepare.py [--photographs 200] [--size 4000x3000] [--ways loop threads processes]

Makes the photographs in a temporary directory (about 4 MB each), then runs each way in a process of its own, in turn,
and prints the best time of each, the ratio to the loop, and the peak memory of the process (of ``processes``: without
its workers).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from airflow_provider_wan.images.preparation import map_in_order
from airflow_provider_wan.images.prepare import prepare
from airflow_provider_wan.images.source import usable_cores
from airflow_provider_wan.model_api.schema import ImageRules, Model

PHOTOS = Path(__file__).resolve().parent.parent / "demo" / "photos"
SIZE = (4000, 3000)


def make_photographs(folder: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """Write photographs like a phone's: 12 megapixels, sensor noise, camera EXIF, every third write rotated."""
    bases = [Image.open(PHOTOS / name).convert("RGB").resize(size, Image.Resampling.BICUBIC) for name in
             ("astronaut.jpg", "coffee.jpg", "hubble_deep_field.jpg", "rocket.jpg", "chelsea.jpg")]  # fmt: skip
    # One sheet of noise, cropped at a different rng for each photograph: generating it takes a second.
    width, height = size[0] + 500, size[1] + 500
    noise = Image.frombytes("L", (width, height), random.Random(7).randbytes(width * height)).convert("RGB")

    def write(number: int) -> None:
        rng = random.Random(number)
        left, top = rng.randrange(500), rng.randrange(500)
        grain = noise.crop((left, top, left + size[0], top + size[1]))
        exif = Image.Exif()
        exif[0x010F] = "Example Camera Works"
        exif[0x0112] = 6 if number % 3 == 0 else 1
        image = Image.blend(bases[number % len(bases)], grain, 0.08)
        image.save(folder / f"photo-{number:04}.jpg", quality=88, exif=exif)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(write, range(count)))


def pillow_loop(paths: list[Path], rules: ImageRules) -> int:
    """A hand-written loop: open, draft, scale, rotate, encode, hash."""
    total = 0
    for path in paths:
        with Image.open(path) as image:
            scale = 1999 / max(image.size)
            size = round(image.width * scale), round(image.height * scale)
            image.draft("RGB", size)
            scaled = ImageOps.exif_transpose(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        buffer = io.BytesIO()
        scaled.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
        hashlib.sha256(buffer.getvalue()).hexdigest()
        total += len(buffer.getvalue())
    return total


def prepare_file(path: Path, rules: ImageRules) -> int:
    result = prepare(path.read_bytes(), rules=rules, name=path.name)
    assert result.sha256
    return len(result.data)


def in_threads(paths: list[Path], rules: ImageRules) -> int:
    """The package's own preparation."""
    total = 0
    for path, result in map_in_order(partial(prepare_file, rules=rules), paths):
        if not isinstance(result, int):
            raise SystemExit(f"{path}: {result}")
        total += result
    return total


def in_processes(paths: list[Path], rules: ImageRules) -> int:
    """The same work in worker processes, for comparison."""
    with ProcessPoolExecutor(usable_cores()) as pool:
        return sum(pool.map(partial(prepare_file, rules=rules), paths))


WAYS: dict[str, Callable[[list[Path], ImageRules], int]] = {
    "loop": pillow_loop,
    "threads": in_threads,
    "processes": in_processes,
}


def run_one_way(way: str, folder: Path) -> None:
    (rules,) = Model.bundled("wan-ai/wan-2-2/image-to-video").images
    assert rules is not None
    paths = sorted(folder.glob("*.jpg"))
    start = time.perf_counter()
    total = WAYS[way](paths, rules)
    seconds = time.perf_counter() - start
    # Not ru_maxrss, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "bytes": total}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--size", default="4000x3000", help="in px; phones also have 4032x3024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["loop", "threads"])
    parser.add_argument("--run", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_one_way(args.run, args.folder)
        return
    with tempfile.TemporaryDirectory(prefix="wan-photographs-") as temporary:
        folder = Path(temporary)
        width, height = map(int, args.size.split("x"))
        make_photographs(folder, args.photographs, (width, height))
        size_mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        what = f"{args.photographs} photographs of {args.size} px, {size_mb:.0f} MB"
        print(f"{what}; {usable_cores()} cores; load {os.getloadavg()[0]:.2f}")
        found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
        for _ in range(args.rounds):
            for way in args.ways:
                command = [sys.executable, __file__, "--run", way, "--folder", str(folder)]
                found[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for way, runs in found.items():
        best = min(run["seconds"] for run in runs)
        peak = max(run["peak_mb"] for run in runs)
        line = f"{way:10} {best:7.2f} s  {1000 * best / args.photographs:6.1f} ms each  peak {peak:5.0f} MB"
        if "loop" in found:
            line += f"  {min(run['seconds'] for run in found['loop']) / best:.2f} x"
        print(line + "  rounds: " + ", ".join(f"{run['seconds']:.2f}" for run in runs))


if __name__ == "__main__":
    main()
