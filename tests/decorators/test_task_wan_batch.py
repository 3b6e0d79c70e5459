# SPDX-License-Identifier: Apache-2.0
"""``@task.wan_batch``: the rows that a function returns become videos, and the function is called once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.decorators.wan import WanBatchDecoratedOperator
from airflow_provider_wan.exceptions import WanInputError
from tests.batch_runs import TaskInstance
from tests.dag_runs import DagFolder
from wan_sandbox.server import Sandbox

ROWS = [{"image": f"https://images.example.com/{n}.jpg", "prompt": f"wave {n}"} for n in range(3)]


def batch(dags: DagFolder, calls: Path, rows: list[Any]) -> Any:
    return dags.write(
        f"""
        @task.wan_batch(bucket_name="videos", object_name="out/", check_image=False, model_id="{{{{ params.model }}}}")
        def films(*, params: dict[str, str]):
            with open({str(calls)!r}, "a") as file:
                file.write("x")
            return {rows!r}

        films()
        """,
        params={"model": "wan-ai/wan-3.0/image-to-video"},
    )()


def test_each_row_is_generated_and_the_function_is_called_once(
    queueing_sandbox: Sandbox, dags: DagFolder, tmp_path: Path
) -> None:
    run = batch(dags, tmp_path / "calls", ROWS)
    assert run.states() == {"films": "success"}
    assert run.xcom("films")["landed"] == 3
    bought = [purchase["inputs"] for purchase in queueing_sandbox.ledger()["purchases"]]
    assert {inputs["prompt"] for inputs in bought} == {row["prompt"] for row in ROWS}
    assert all(inputs["image_url"].startswith("https://images.example.com/") for inputs in bought)
    assert (tmp_path / "calls").read_text() == "x"


def test_function_is_called_again_for_signed_addresses_which_no_plan_keeps(
    queueing_sandbox: Sandbox, dags: DagFolder, tmp_path: Path
) -> None:
    signed = [{**row, "image": f"{row['image']}?X-Goog-Signature=00ff"} for row in ROWS]
    run = batch(dags, tmp_path / "calls", signed)
    assert run.xcom("films")["landed"] == 3
    assert len((tmp_path / "calls").read_text()) > 1


@pytest.mark.parametrize("returned", [None, 7])
def test_anything_but_rows_is_refused(sandbox: Sandbox, returned: Any) -> None:
    task = WanBatchDecoratedOperator(
        task_id="films", python_callable=lambda: returned, op_args=(), bucket_name="videos"
    )
    with pytest.raises(WanInputError, match="must return rows"):
        task.execute({"ti": TaskInstance(), "outlet_events": {}})
    assert sandbox.ledger()["calls"] == {}
