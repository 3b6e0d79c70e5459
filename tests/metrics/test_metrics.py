# SPDX-License-Identifier: Apache-2.0
"""Counters and timers, as they arrive at a real StatsD port."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_wan import metrics

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent

_ONE_VIDEO = """
try:  # since 3.3 each part of Airflow switches its own stats on, a task's worker as here
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory
    stats.initialize(factory=get_stats_factory())
except (ImportError, AttributeError, TypeError):
    pass
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
class TI:
    dag_id, run_id, task_id, map_index = "d", "r", "t", -1
    def xcom_push(self, key, value): pass
context = {"ti": TI(), "outlet_events": {}}
submit = WanSubmitOperator(task_id="submit", prompt="a wave", img_url="https://images.example.com/a.jpg",
    check_image=False)
request = submit.execute(context)
result = WanRequestSensor(task_id="wait", request=request).poke(context).xcom_value
WanToGCSOperator(task_id="land", request=result, bucket_name="videos", object_name="a.mp4",
    checks=[lambda path, facts, record: "it is dull"]).execute(context)
try:
    WanSubmitOperator(task_id="bad", prompt="a wave", img_url="https://images.example.com/a.jpg",
        resolution="8K").execute(context)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        yield opened


def test_names_are_documented() -> None:
    names = {value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)}
    page = (ROOT / "docs" / "howto" / "metrics.md").read_text()
    assert names == set(re.findall(r"`(wan\.[a-z_.]+)`", page))


@pytest.mark.parametrize(
    ("kind", "counter"),
    [
        ("WanInputError", metrics.REFUSED),
        ("WanBalanceError", metrics.REFUSED),
        ("WanUnknownSubmissionError", metrics.UNKNOWN),
        ("WanGenerationFailedError", metrics.FAILED),
        ("WanCancelledError", metrics.CANCELLED),
        ("WanTimeoutError", metrics.TIMED_OUT),
        ("WanStorageError", None),
    ],
)
def test_error_increments_the_counter_of_its_kind(kind: str, counter: str | None) -> None:
    from airflow_provider_wan import exceptions

    error = getattr(exceptions, kind)("why")
    found = [
        metrics.COUNTER_OF_ERROR[base.__name__]
        for base in type(error).__mro__
        if base.__name__ in metrics.COUNTER_OF_ERROR
    ]
    assert found[:1] == ([counter] if counter else [])


def test_metrics_of_one_video_arrive_at_statsd(sandbox: Sandbox, port: socket.socket) -> None:
    pytest.importorskip("statsd")
    settings = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(port.getsockname()[1])}
    env = {**os.environ, **{f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}}
    done = subprocess.run(
        [sys.executable, "-c", _ONE_VIDEO], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sent = received(port)
    assert sent["airflow." + metrics.SUBMITTED] == "1|c"
    assert sent["airflow." + metrics.SUCCEEDED] == "1|c"
    assert sent["airflow." + metrics.REFUSED] == "1|c"
    assert sent["airflow." + metrics.COST_USD] == "0.2|c"
    assert sent["airflow." + metrics.LANDED_VIDEOS] == "1|c"
    assert sent["airflow." + metrics.LANDED_BYTES] == "50000|c"
    assert sent["airflow." + metrics.BAD_VIDEOS] == "1|c"
    assert {"airflow." + metrics.LANDING, "airflow." + metrics.TURNAROUND} <= sent.keys()


def received(port: socket.socket) -> dict[str, str]:
    """Read the metrics that arrived: the sender has ended, so all of them are in the socket's buffer."""
    port.setblocking(False)
    sent = {}
    try:
        while True:
            name, _, value = port.recv(65536).decode().partition(":")
            sent[name] = value
    except BlockingIOError:
        return sent
