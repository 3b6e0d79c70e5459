# SPDX-License-Identifier: Apache-2.0
"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.sandbox_process import SandboxProcess
from tests.distributed.cluster import CHUNKS, START_S, CeleryAirflow, Redis
from tests.live import conftest
from tests.live.harness_live import Live
from tests.live.postgres import Postgres

ROOT, live_sandbox, _stop_on_sigterm = conftest.ROOT, conftest.live_sandbox, conftest._stop_on_sigterm


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, live_sandbox: SandboxProcess) -> Iterator[CeleryAirflow]:
    """The cluster."""
    home = tmp_path_factory.mktemp("cluster")
    folders = [Path(__file__).parent / "dags", ROOT / "tests/live/dags", ROOT / "dags"]
    env = {**live_sandbox.env, "WAN_POLL_INTERVAL_SCALE": "0.25"}  # a generation takes 3 s
    with (
        Postgres() as postgres,
        Redis(home / "redis") as redis,
        CeleryAirflow(home, dags_folders=folders, env=env, database=postgres.url, redis=redis) as airflow,
    ):
        yield airflow


@pytest.fixture(scope="session")
def live(airflow: CeleryAirflow, live_sandbox: SandboxProcess) -> Live:
    """The interface of a scenario to the cluster and the sandbox."""
    live = Live(airflow=airflow, sandbox=live_sandbox)
    live.client.api("POST", "/pools", {"name": "wan", "slots": 8, "include_deferred": True})
    airflow.wait_for_dags(CHUNKS, timeout_s=START_S)
    live.client.unpause(CHUNKS)
    return live
