# SPDX-License-Identifier: Apache-2.0
"""Check the images of a bucket by their headers, compared with downloading the whole images.

    python benchmarks/images_check.py [--images 1000] [--rounds 2] [--latency-ms 0] [--mb-per-s 0]

Starts the sandbox's bucket in a separate process and fills it with photographs of 12 megapixels (twenty
different ones, copied). Each way then lists the bucket and checks whether the model accepts each image, with
the same threads and the same client; the bytes are counted by the bucket. ``--latency-ms`` and ``--mb-per-s``
make the bucket's link as slow as a real one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from images_prepare import make_photographs

from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.images.dataset import DatasetReader
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.preparation import Findings, Preparation
from airflow_provider_wan.images.prepare import check
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.model_api.schema import LazyModel, Model

MODEL = "wan-ai/wan-2-2/image-to-video"
DISTINCT = 20
WORKERS = 8


def control(bucket_url: str, path: str, body: dict[str, Any] | None = None, method: str = "GET") -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{bucket_url}/_sandbox/{path}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        shown: dict[str, Any] = json.load(answer)
        return shown


def fill(client: Any, folder: Path, count: int) -> None:
    make_photographs(folder, min(DISTINCT, count))
    bucket = client.bucket("photos")
    originals = []
    for path in sorted(folder.glob("*.jpg")):
        blob = bucket.blob(f"originals/{path.name}")
        blob.upload_from_filename(str(path), content_type="image/jpeg")
        originals.append(blob)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(
            pool.map(
                lambda n: bucket.copy_blob(originals[n % len(originals)], bucket, f"set/{n:05}.jpg"),
                range(count),
            )
        )


def by_headers(client: Any) -> int:
    sources = ImageSources(LazyModel(MODEL), lambda: client, logging.getLogger(), options=ImageOptions())
    counts = Findings()
    rows = DatasetReader(lambda: client).rows("gs://photos/set/")
    for one in Preparation(sources, workers=WORKERS).plan(rows):
        counts.add(one)
    return counts.fixed


def downloaded_whole(client: Any) -> int:
    (rules,) = Model.bundled(MODEL).images
    assert rules is not None

    def one(blob: Any) -> bool:
        return bool(check(inspect(blob.download_as_bytes(), name=blob.name), rules))

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(one, client.list_blobs("photos", prefix="set/")))


WAYS: dict[str, Callable[[Any], int]] = {"headers": by_headers, "whole": downloaded_whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--mb-per-s", type=float, default=0, help="of each response")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wan-check-") as temporary:
        folder = Path(temporary)
        state = folder / "state.json"
        command = [sys.executable, "-m", "wan_sandbox", "--port", "0", "--bucket-port", "0"]
        server = subprocess.Popen(
            [*command, "--bucket", "photos", "--state-file", str(state)], stdout=subprocess.DEVNULL
        )
        try:
            while not state.exists():
                time.sleep(0.05)
            url = json.loads(state.read_text())["bucket_url"]
            os.environ["STORAGE_EMULATOR_HOST"] = url
            client = storage_client(pool_size=WORKERS)
            fill(client, folder, args.images)
            shape = {"latency_s": args.latency_ms / 1000, "bytes_per_s": args.mb_per_s * 1e6}
            control(url, "shape", shape, "POST")
            print(f"{args.images} images; load {os.getloadavg()[0]:.2f}")
            best: dict[str, tuple[float, int]] = {}
            for _ in range(args.rounds):
                for way, run in WAYS.items():
                    control(url, "calls", method="DELETE")
                    start = time.perf_counter()
                    found = run(client)
                    seconds = time.perf_counter() - start
                    read = control(url, "calls")["bytes_read"]
                    print(f"{way:8} {seconds:7.2f} s  {read / 1e6:8.1f} MB read  {found} rejected")
                    best[way] = min(best.get(way, (seconds, read)), (seconds, read))
            (fast, few), (slow, many) = best["headers"], best["whole"]
            print(f"headers only: {slow / fast:.1f} x as fast, {many / few:.0f} x fewer bytes")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
