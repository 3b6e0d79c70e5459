# SPDX-License-Identifier: Apache-2.0
"""A landing holds chunks of a video in memory, never the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.landing.landing_support import FTYP, buy, moov
from tests.sandboxes import Bucket
from tests.wires import Wire, read_head
from wan_sandbox.server import Sandbox

SIZE_BYTES = 200 * 1024 * 1024
#: A chunk of the upload is 16 MiB, and the client copies it; 200 MiB is far more.
MOST_BYTES = 100 * 1024 * 1024

LAND = """
import resource, sys
from tests.landing.landing_support import landing, to
from tests.sandboxes import Bucket
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.hooks.gcs import storage_client

request_id, host = sys.argv[1:]
bucket = Bucket(storage_client(), "videos", None)
bucket.client.bucket("videos").blob("warm").upload_from_string(b"up")
record = Record("f" * 64, "m/m", Stage.SUBMITTED, request_id=request_id)
one = landing(bucket, [host], stall_s=30)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
one.land(record, to(bucket))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_landing_of_200_mb_is_not_held_in_memory(bucket: Bucket, sandbox: Sandbox) -> None:
    length = len(FTYP + moov(0, [1])) + 8
    payload = SIZE_BYTES - length
    head = FTYP + moov(length, [payload])
    zeros = bytes(1024 * 1024)

    def send(sock: object) -> None:
        read_head(sock)  # type: ignore[arg-type]
        start = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {SIZE_BYTES}\r\n\r\n".encode()
        sock.sendall(start + head + (payload + 8).to_bytes(4, "big") + b"mdat")  # type: ignore[attr-defined]
        for at in range(0, payload, len(zeros)):
            sock.sendall(zeros[: payload - at])  # type: ignore[attr-defined]

    with Wire(send) as wire:
        request_id = str(buy().request_id)
        sandbox.add_fault("result", "link", url=f"{wire.url}/v.mp4")
        root = Path(__file__).resolve().parents[2]
        code = f"import sys; sys.path.insert(0, {str(root)!r})\n{LAND}"
        done = subprocess.run(
            [sys.executable, "-c", code, request_id, wire.url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < MOST_BYTES
    assert bucket.objects()["v/clip.mp4"]["size_bytes"] == SIZE_BYTES
