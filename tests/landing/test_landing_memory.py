# SPDX-License-Identifier: Apache-2.0
"""What a landing needs of a machine: a part of a video in memory, and temporary files that a kill does not leave."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.landing.checks import VideoChecks
from demo.airflow_client import wait_until
from tests.landing.landing_support import FTYP, buy, landing, moov, to
from tests.raw_servers import RawServer, read_head
from tests.sandboxes import Bucket
from tests.task_runs import connect
from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parents[2]
SIZE_BYTES = 500 * 1024 * 1024
#: A piece of the upload is 16 MiB, and the client copies it; 500 MiB is far beyond.
MOST_BYTES = 100 * 1024 * 1024
#: Memory of a small pod: 256 MiB and what a task of Airflow 3.3 has before it does anything.
POD_BYTES = (256 + 115) * 1024 * 1024

#: A worker's process with one landing. Prints how much its memory grows.
LAND = """
import resource, sys
import airflow.sdk.execution_time.task_runner
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from google.cloud import storage
from tests.task_runs import make_context

request_id, object_name = sys.argv[1:]
storage.Client().bucket("videos").blob("warm").upload_from_string(b"up")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
task = WanToGCSOperator(
    task_id="land", request={"request_id": request_id}, bucket_name="videos", object_name=object_name
)
task.execute(make_context())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
#: A worker's process in the middle of a user's check.
CHECK = """
import sys, time
from tests.landing.landing_support import VideoChecks, buy, landing, to
from tests.sandboxes import Bucket
from tests.task_runs import connect
from airflow_provider_wan.hooks.gcs import storage_client

def never_ends(path, facts, record):
    sys.stdin.read()
    return open(path, "rb").read(8)[4:] == b"ftyp"

bucket = Bucket(storage_client(), "videos", None)
landed = landing(bucket, checks=VideoChecks((never_ends,))).land(buy(), to(bucket, sys.argv[1]))
print(landed.verdict, flush=True)
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
def video(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A request whose video has 500 MiB."""
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
        connect(monkeypatch, sandbox, download_hosts=[wire.url])
        request_id = str(buy().request_id)
        sandbox.add_fault("result", "link", url=f"{wire.url}/v.mp4")
        yield request_id


def start(code: str, *arguments: str, temporary: Path, group: Path | None = None) -> subprocess.Popen[str]:
    """Start a worker's process, as a member of a control group."""
    join = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')" if group else ""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{join}\n{code}", *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open: this one, or one in this directory."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed in between
            if str(file.readlink()).startswith(str(path)):
                return True
    return False


def test_landing_of_500_mb_fits_into_a_small_pod(
    bucket: Bucket, video: str, pod_memory: Path | None, tmp_path: Path
) -> None:
    with start(LAND, video, "v/clip.mp4", temporary=tmp_path, group=pod_memory) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert int(printed.split()[-1]) < MOST_BYTES
    assert bucket.objects()["v/clip.mp4"]["size_bytes"] == SIZE_BYTES
    assert list(tmp_path.iterdir()) == []


def test_killed_landing_leaves_no_temporary_file(bucket: Bucket, video: str, tmp_path: Path) -> None:
    with start(LAND, video, "v/clip.mp4", temporary=tmp_path) as process:
        wait_until(
            lambda: is_open(process.pid, tmp_path),
            "the video being kept in the temporary directory",
            timeout_s=120,
            every_s=0.01,
        )
        process.kill()
    assert list(tmp_path.iterdir()) == []
    assert "v/clip.mp4" not in bucket.objects()


def test_copy_for_a_users_check_is_removed_after_a_kill_and_not_while_its_process_lives(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def good(path: str, facts: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
        return True

    def copies() -> set[Path]:
        return set(tmp_path.iterdir())

    with start(CHECK, "killed.mp4", temporary=tmp_path) as killed:
        wait_until(lambda: len(copies()) == 1, "a copy for the check", timeout_s=120, every_s=0.05)
        with start(CHECK, "alive.mp4", temporary=tmp_path) as alive:
            wait_until(lambda: len(copies()) == 2, "a copy of the other process", timeout_s=120, every_s=0.05)
            [abandoned] = [copy for copy in copies() if is_open(killed.pid, copy)]
            killed.kill()
            killed.wait()
            assert abandoned in copies()

            landing(bucket, checks=VideoChecks((good,))).land(buy(), to(bucket, "next.mp4"))

            assert len(copies() - {abandoned}) == len(copies()) == 1
            printed, errors = alive.communicate("", timeout=120)
    assert printed.split()[-1] == "good", errors[-3000:]
    assert copies() == set()
