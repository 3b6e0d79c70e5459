# SPDX-License-Identifier: Apache-2.0
"""Give every test run its own Airflow in a temporary directory.

This runs before anything imports Airflow, which reads its environment once, on import.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.dag_runs import DagFolder
    from tests.sandboxes import Bucket
    from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parent.parent

# With pytest-xdist the controller creates the directory, and its workers inherit and share it.
_BASE_VARIABLE = "WAN_TESTS_BASE"
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

if not _IS_WORKER:
    os.environ[_BASE_VARIABLE] = tempfile.mkdtemp(prefix="wan-tests-")
BASE = Path(os.environ[_BASE_VARIABLE])
AIRFLOW_HOME = BASE / os.environ.get("PYTEST_XDIST_WORKER", "main")
AIRFLOW_HOME.mkdir(exist_ok=True)


def _airflow_environment(home: Path) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


os.environ.update(_airflow_environment(AIRFLOW_HOME))


def pytest_unconfigure() -> None:
    """Delete the directory; the controller does it, since it outlives its workers."""
    if not _IS_WORKER:
        shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    """Return the file of a migrated SQLite database for this process: migrated once per run, then copied."""
    template = BASE / "template"
    template.mkdir(exist_ok=True)
    with open(BASE / "template.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (template / "done").exists():
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env={**os.environ, **_airflow_environment(template)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-4000:]
            (template / "done").touch()
    database = AIRFLOW_HOME / "airflow.db"
    shutil.copyfile(template / "airflow.db", database)
    return database


@pytest.fixture
def dags(airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DagFolder:
    """A dags folder for a test that runs tasks in Airflow."""
    from tests.dag_runs import DagFolder

    folder = tmp_path / "dags"
    folder.mkdir()
    return DagFolder(folder, monkeypatch)


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[Sandbox]:
    """One sandbox for this process: it looks at no image, encodes nothing, and generations end at once."""
    from tests.sandboxes import VIDEO_BYTES
    from wan_sandbox.server import Sandbox

    with Sandbox(
        video_bytes=VIDEO_BYTES,
        check_images=False,
        generation_seconds=0,
        buckets=("videos", "images"),
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def no_cached_pages() -> None:
    """Each test begins, as a task does, in a process that has read no page of a model."""
    if (hook := sys.modules.get("airflow_provider_wan.hooks.wan")) is not None:
        hook.WanHook.forget_models()


@pytest.fixture
def sandbox(sandbox_server: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The shared sandbox in its initial state, with the environment that points at it.

    How long generations run is changed with ``sandbox.control("speed", {"generation_seconds": 3600})``.
    """
    sandbox_server.reset()
    sandbox_server.bucket_control("calls", method="DELETE")
    sandbox_server.bucket_control("shape", {"latency_s": 0, "bytes_per_s": 0, "write_interval_s": 0})
    for name, value in sandbox_server.env().items():
        monkeypatch.setenv(name, value)
    return sandbox_server


@pytest.fixture
def queueing_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox of the test's own whose requests queue and run: four at a time, 300 times as fast."""
    from wan_sandbox.server import Sandbox

    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")  # a generation takes a third of a second here
    settings = {"speed": 300, "concurrency": 4, "video_bytes": 20_000, "check_images": False}
    with Sandbox(**settings, buckets=("videos",)) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def bucket(sandbox: Sandbox) -> Bucket:
    """The bucket ``videos`` of the sandbox with a real client."""
    from airflow_provider_wan.hooks.gcs import storage_client
    from tests.sandboxes import Bucket

    return Bucket(storage_client(), "videos", sandbox)
