# SPDX-License-Identifier: Apache-2.0
"""The comparison with a PythonOperator in the documentation holds: both run against the sandbox."""

from __future__ import annotations

import json

import pytest
import requests

from airflow_provider_wan.exceptions import WanGenerationFailedError, WanInputError
from airflow_provider_wan.operators.wan import WanSubmitOperator
from tests.docs import plain_python
from tests.sandboxes import INPUTS
from tests.task_runs import make_context, purchases, run
from wan_sandbox.server import Sandbox


@pytest.fixture(autouse=True)
def _plain(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    monkeypatch.setenv("RUNCOMFY_TOKEN", connection["password"])
    monkeypatch.setattr(plain_python, "API", connection["host"])


def submit(**inputs: str) -> WanSubmitOperator:
    return WanSubmitOperator(
        task_id="generate",
        check_image=False,
        journal="gs://videos/_journal",
        wait_for_completion=True,
        poll_interval=0.05,
        **(INPUTS | inputs),  # type: ignore[arg-type]
    )


def test_plain_python_makes_a_video_when_nothing_goes_wrong(sandbox: Sandbox) -> None:
    assert plain_python.generate(**INPUTS).startswith("http")
    assert len(purchases(sandbox)) == 1


def test_one_failed_poll_makes_a_retry_of_plain_python_buy_again_and_ours_not(sandbox: Sandbox) -> None:
    sandbox.add_fault("status", "status", status=503, count=1)
    with pytest.raises(requests.HTTPError):
        plain_python.generate(**INPUTS)
    plain_python.generate(**INPUTS)
    assert len(purchases(sandbox)) == 2

    sandbox.reset()
    sandbox.add_fault("status", "status", status=503, count=1)
    run(submit(), make_context())
    run(submit(), make_context())
    assert len(purchases(sandbox)) == 1


def test_a_failed_generation_has_no_video_and_plain_python_reports_a_key_error(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", count=2)
    with pytest.raises((KeyError, TypeError)):
        plain_python.generate(**INPUTS)
    with pytest.raises(WanGenerationFailedError):
        run(submit(), make_context())


def test_a_mistyped_value_costs_plain_python_a_call_and_is_refused_here_first(sandbox: Sandbox) -> None:
    with pytest.raises(WanInputError, match="resolution"):
        run(submit(resolution="8k"), make_context())
    assert sandbox.ledger()["submits_seen"] == 0
