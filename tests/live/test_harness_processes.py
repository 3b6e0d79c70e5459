# SPDX-License-Identifier: Apache-2.0
"""The harness stops every process it started and no other, and shows the useful part of a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.airflow_client import wait_until
from demo.processes import OwnProcess, stop_all, useful_end
from demo.progress import request_states
from demo.table import Row, render
from demo.task_logs import plain_log

ROOT = Path(__file__).resolve().parents[2]
# A parent with a child in its own process group, like Airflow's tasks; both ignore SIGTERM.
FAMILY = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
    open("child", "w").write(str(os.getpid()))
time.sleep(600)
"""


def family(folder: Path) -> tuple[OwnProcess, int]:
    own = OwnProcess("family", [sys.executable, "-c", FAMILY], env=os.environ, log_path=folder / "log", cwd=folder)
    text = wait_until(
        lambda: (folder / "child").exists() and (folder / "child").read_text(), "the child", timeout_s=120
    )
    return own, int(text)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_stopping_ends_children_in_groups_of_their_own_too(tmp_path: Path) -> None:
    own, child = family(tmp_path)
    assert set(own.pids()) == {own.pid, child}

    stop_all([own], grace_s=0.5)

    assert own.exit_code == -signal.SIGKILL
    assert own.pids() == []
    assert is_gone(child)


def test_a_frozen_process_can_be_stopped(tmp_path: Path) -> None:
    own = OwnProcess("sleep", ["sleep", "600"], env=os.environ, log_path=tmp_path / "log")
    own.pause()

    stop_all([own], grace_s=10)

    assert own.exit_code == -signal.SIGTERM


def test_nothing_outlives_a_starter_that_was_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.live.test_harness_processes import family
own, child = family(Path({str(tmp_path)!r}))
Path({str(tmp_path)!r}, "pids").write_text(f"{{own.pid}} {{child}}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    starter = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)

    assert starter.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: all(map(is_gone, pids)), "the end of both", timeout_s=120)


def test_the_useful_end_begins_with_the_last_traceback() -> None:
    lines = ["noise"] * 50 + ["Traceback (most recent call last):", "  File x", "ValueError: why", "Exited"]

    end = useful_end("\n".join(lines))

    assert end.splitlines() == ["Traceback (most recent call last):", "  File x", "ValueError: why", "Exited"]


def test_the_useful_end_is_bounded() -> None:
    end = useful_end("\n".join(["x" * 5000] * 500), lines=10, width=80)

    assert [len(line) for line in end.splitlines()] == [80] * 10


def test_a_task_log_is_shown_as_text_with_the_frames_of_its_own() -> None:
    frames = [
        {"filename": "/site-packages/airflow/sdk/execution_time/task_runner.py", "lineno": 1, "name": "run"},
        {"filename": "/dags/mine.py", "lineno": 7, "name": "make"},
    ]
    detail = [{"exc_type": "ValueError", "exc_value": "why", "frames": frames}]
    log = "\n".join(
        json.dumps({"timestamp": "12:00", "level": "info", **entry})
        for entry in (
            {"event": "::group::Pre Execute"},
            {"event": "Submitted", "request_id": "r1", "ti_id": "long"},
            {"event": "Failed", "error_detail": detail},
        )
    )

    assert plain_log(log).splitlines() == [
        "12:00 info     Submitted request_id=r1",
        "12:00 info     Failed",
        "  File /dags/mine.py, line 7, in make",
        "ValueError: why",
    ]


def test_queued_requests_are_shown_with_their_place() -> None:
    purchases = [
        {"img_url": url, "state": state, "at": at}
        for url, state, at in (("u3", "queued", 3), ("u1", "running", 1), ("u2", "queued", 2))
    ]

    states = request_states(purchases, {"u1": "one", "u2": "two", "u3": "three"})

    assert states == {"one": "being made", "two": "queued, position 1", "three": "queued, position 2"}


@pytest.mark.parametrize(
    ("row", "landed", "text"),
    [
        (Row("a.jpg", uri="gs://b/a.mp4", size_bytes=1_500_000, length_s=5.0, cost_usd=0.2), True, "1.50 MB"),
        (Row("a.jpg", refused="too small"), False, "a.jpg: refused, nothing paid. too small"),
        (Row("a.jpg", uri="gs://b/a.mp4", problem="only 3 frames"), False, "a.jpg: FAILED. only 3 frames"),
    ],
)
def test_table_shows_the_outcome_of_each_photograph(row: Row, landed: bool, text: str) -> None:
    assert row.landed is landed
    assert text in render([row])
