# SPDX-License-Identifier: Apache-2.0
"""Measure the peak memory of preparing a dataset of 1,000 rows and of 100,000.

    python benchmarks/images_memory.py [--rows 1000 100000] [--ways manifest prefix]

Each size runs in its own process, against the sandbox's bucket in another. ``manifest`` is a JSON lines file
whose rows were already prepared: it measures reading the file, the threads and writing the chunks, without
the memory of the images. ``prefix`` is a listing of as many objects, each of which already has a staged copy.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

DATASETS = {"manifest": "gs://data/set-{rows}.jsonl", "prefix": "gs://data/set-{rows}/"}


def control(bucket_url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{bucket_url}/_sandbox/{path}", data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=600):
        pass


def fill(bucket_url: str, way: str, rows: int) -> None:
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.images.rows import PreparedImage

    if way == "prefix":
        content = _small_image()
        body = {"bucket": "data", "prefix": f"set-{rows}/", "count": rows, "suffix": ".bmp"}
        control(bucket_url, "seed", body | {"text": content.decode("latin-1")})
        return
    image = PreparedImage("", "", 640, 480, 81234, "0" * 64, ("encoded as JPEG, quality 95",), "md5:" + "0" * 32)
    with tempfile.TemporaryFile() as file:
        for number in range(rows):
            line = image.as_dict() | {
                "source": f"gs://data/photos/{number:06}.jpg",
                "staged_uri": f"gs://data/staged/{number:06}.jpg",
                "inputs": {"prompt": f"Photograph {number}: a slow move closer", "seed": number},
            }
            file.write(json.dumps(line).encode() + b"\n")
        size = file.tell()
        file.seek(0)
        storage_client().bucket("data").blob(f"set-{rows}.jsonl").upload_from_file(file, size=size)


def _small_image() -> bytes:
    """Return an image file that is line ASCII, as the bucket's seeding requires; a GIF would not be."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (65, 66, 67)).save(buffer, "BMP")
    return base64.b64encode(buffer.getvalue())


def run_once(way: str, rows: int) -> None:
    from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator

    logging.disable(logging.INFO)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id=f"t{rows}", map_index=-1, xcom_push=lambda key, value: None)
    task = WanPrepareImagesOperator(
        task_id="prepare",
        dataset=DATASETS[way].format(rows=rows),
        staging="gs://data/staged",
        chunk_size=100,
        on_invalid="skip",
        tolerated_share=1.0,
        wan_conn_id=None,
    )
    start = time.perf_counter()
    chunks = task.execute({"ti": ti})
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print("RESULT" + json.dumps({"seconds": seconds, "peak_mb": peak_mb, "chunks": len(chunks)}))


def stage_mark(bucket_url: str) -> None:
    """Stage a prepared copy of the one image that all objects of the prefix contain."""
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.images.prepare import PreparedFile
    from airflow_provider_wan.images.readers import WebReader, md5_identity
    from airflow_provider_wan.images.staging import Staging, copy_key
    from airflow_provider_wan.model_api.schema import Model

    (rules,) = Model.bundled("wan-ai/wan-2-2/image-to-video").images
    assert rules is not None
    data = _small_image()
    key = copy_key(md5_identity(data), rules, background="white", too_small="upscale")
    prepared = PreparedFile(data, "JPEG", 640, 480, ("fixed",))
    Staging(storage_client(), "gs://data/staged").put(key, WebReader("https://example.com/a.bmp"), prepared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=list(DATASETS), default=["manifest"])
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_once(args.run[0], int(args.run[1]))
        return
    with tempfile.TemporaryDirectory(prefix="wan-memory-") as temporary:
        state = Path(temporary) / "state.json"
        command = [sys.executable, "-m", "wan_sandbox", "--port", "0", "--bucket-port", "0"]
        server = subprocess.Popen([*command, "--bucket", "data", "--state-file", str(state)], stdout=subprocess.DEVNULL)
        try:
            while not state.exists():
                time.sleep(0.05)
            url = json.loads(state.read_text())["bucket_url"]
            os.environ["STORAGE_EMULATOR_HOST"] = url
            os.environ["AIRFLOW_HOME"] = temporary
            stage_mark(url)
            for way in args.ways:
                peaks = []
                for rows in args.rows:
                    fill(url, way, rows)
                    done = subprocess.run(
                        [sys.executable, __file__, "--run", way, str(rows)],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    result = json.loads(done.stdout.partition("RESULT")[2])
                    peaks.append(result["peak_mb"])
                    print(
                        f"{way:9} {rows:8,} rows  peak {result['peak_mb']:6.1f} MB  {result['seconds']:7.1f} s  "
                        f"{result['chunks']} chunks"
                    )
                print(f"{way}: {peaks[-1] / peaks[0]:.2f} x the memory for {args.rows[-1] // args.rows[0]} x the rows")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
