# SPDX-License-Identifier: Apache-2.0
"""A landing holds parts of a video in memory, never all of it, and a killed one leaves no temporary file."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from demo.airflow_client import wait_until
from tests.landing.landing_support import FTYP, buy, moov
from tests.raw_servers import RawServer, read_head
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parents[2]
SIZE_BYTES = 500 * 1024 * 1024
#: A piece of the upload is 16 MiB, and the client copies it; 500 MiB is far beyond.
MOST_BYTES = 100 * 1024 * 1024
#: Memory of a small pod: Airflow and the client of the bucket take 200 MB of it.
POD_BYTES = 384 * 1024 * 1024

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


@pytest.fixture
def pod_memory() -> Iterator[Path | None]:
    """A control group with the memory of a small pod; None where this user may not make one."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup", "" if v2 else "memory", f"wan-test-{uuid.uuid4().hex}")
    try:
        group.mkdir()
        (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(POD_BYTES))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        yield None
        return
    yield group
    group.rmdir()


@pytest.fixture
def video(sandbox: Sandbox) -> Iterator[tuple[str, str]]:
    """A request whose video has 500 MiB, and the origin of its link."""
    length = len(FTYP + moov(0, [1])) + 8
    payload = SIZE_BYTES - length
    head = FTYP + moov(length, [payload])
    zeros = bytes(1024 * 1024)

    def send(sock: object) -> None:
        read_head(sock)  # type: ignore[arg-type]
        start = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {SIZE_BYTES}\r\n\r\n".encode()
        with suppress(OSError):  # the client was killed
            sock.sendall(start + head + (payload + 8).to_bytes(4, "big") + b"mdat")  # type: ignore[attr-defined]
            for at in range(0, payload, len(zeros)):
                sock.sendall(zeros[: payload - at])  # type: ignore[attr-defined]

    with RawServer(send) as wire:
        request_id = str(buy().request_id)
        sandbox.add_fault("result", "link", url=f"{wire.url}/v.mp4")
        yield request_id, wire.url


def start(video: tuple[str, str], temporary: Path, group: Path | None = None) -> subprocess.Popen[str]:
    """Start a process that lands the video, as a member of a control group."""
    join = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')" if group else ""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{join}\n{LAND}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *video],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_landing_of_500_mb_fits_into_a_small_pod(
    bucket: Bucket, video: tuple[str, str], pod_memory: Path | None, tmp_path: Path
) -> None:
    with start(video, tmp_path, pod_memory) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert int(printed.split()[-1]) < MOST_BYTES
    assert bucket.objects()["v/clip.mp4"]["size_bytes"] == SIZE_BYTES
    assert list(tmp_path.iterdir()) == []


def test_killed_landing_leaves_no_temporary_file(
    bucket: Bucket, video: tuple[str, str], tmp_path: Path
) -> None:
    with start(video, tmp_path) as process:

        def on_disk() -> bool:
            files = Path(f"/proc/{process.pid}/fd").iterdir()
            return any(str(file.readlink()).startswith(str(tmp_path)) for file in files if file.is_symlink())

        wait_until(on_disk, "the video being kept in the temporary directory", timeout_s=120, every_s=0.01)
        process.kill()
    assert list(tmp_path.iterdir()) == []
    assert "v/clip.mp4" not in bucket.objects()
