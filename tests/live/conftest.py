# SPDX-License-Identifier: Apache-2.0
"""One real Airflow for the whole live suite: PostgreSQL, scheduler, triggerer, sandbox."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from demo.local_airflow import LocalAirflow  # noqa: E402
from demo.sandbox_process import SandboxProcess  # noqa: E402
from tests.live.harness_live import IMAGES_BUCKET, VIDEOS_BUCKET, Live  # noqa: E402
from tests.live.harness_scenarios import SideBySide  # noqa: E402
from tests.live.postgres import Postgres  # noqa: E402
from tests.live.scenario_table import pytest_terminal_summary  # noqa: E402, F401

HEALTH_THRESHOLD_S = 8
"""Seconds without a heartbeat after which a triggerer's work is taken over."""


@pytest.fixture(scope="session", autouse=True)
def _stop_on_sigterm() -> Iterator[None]:
    """A time-out that ends pytest with SIGTERM must not leave an Airflow behind: fixtures are torn down."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    if threading.current_thread() is not threading.main_thread():
        yield  # a pytest-xdist worker that may not handle signals; the guardian process cleans up after it
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture(scope="session")
def live_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """The sandbox as a process, with room for all scenarios and real but small padded videos."""
    home = tmp_path_factory.mktemp("sandbox")
    arguments = ["--generation-seconds", "3", "--concurrency", "50", "--video-bytes", "300000"]
    for bucket in (IMAGES_BUCKET, VIDEOS_BUCKET):
        arguments += ["--bucket", bucket]
    with SandboxProcess(home, arguments) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def live_airflow(tmp_path_factory: pytest.TempPathFactory, live_sandbox: SandboxProcess) -> Iterator[LocalAirflow]:
    """Airflow on PostgreSQL with one triggerer; more with ``start_triggerer()``."""
    home = tmp_path_factory.mktemp("airflow")
    folders = [Path(__file__).parent / "dags", ROOT / "dags"]
    with (
        Postgres() as postgres,
        LocalAirflow(
            home,
            dags_folders=[folder for folder in folders if any(folder.glob("*.py"))],
            env={**live_sandbox.env, "WAN_POLL_INTERVAL_SCALE": "0.25"},  # a generation takes 3 s
            database=postgres.url,
            health_threshold_s=HEALTH_THRESHOLD_S,
            parallelism=8,
        ) as airflow,
    ):
        yield airflow


@pytest.fixture(scope="session")
def live(live_airflow: LocalAirflow, live_sandbox: SandboxProcess) -> Live:
    """The interface of a scenario to Airflow and the sandbox."""
    return Live(airflow=live_airflow, sandbox=live_sandbox)


@pytest.fixture(scope="session")
def side_by_side(live: Live, request: pytest.FixtureRequest) -> SideBySide:
    """Starts every selected scenario when the first is asked for."""
    return SideBySide(live, request.session.items)
