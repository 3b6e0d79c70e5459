# SPDX-License-Identifier: Apache-2.0
"""The smallest Dags that show that the local Airflow works: a wait in the triggerer, and a task to kill."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseHook, BaseOperator, Context, dag, task


class WaitInTriggerer(BaseOperator):
    """Defers for some seconds, which the run's ``conf`` may change."""

    def execute(self, context: Context) -> None:
        conf: dict[str, Any] = context["dag_run"].conf or {}
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=conf.get("wait_s", 1))), method_name="execute_complete"
        )

    def execute_complete(self, context: Context, event: Any) -> str:
        return "woken"


# A busy scheduler hears of the deferral only after the trigger has fired, takes the task for lost, and retries it.
@dag(schedule=None, default_args={"retries": 2, "retry_delay": timedelta(0)})
def harness_defer() -> None:
    @task
    def after(word: str) -> str:
        return f"{word} up"

    after(WaitInTriggerer(task_id="wait").output)


@dag(schedule=None)
def harness_kill() -> None:
    @task(retries=1, retry_delay=timedelta(seconds=0))
    def sleep_on_the_first_try(*, ti: Any = None) -> int:
        if ti.try_number == 1:
            time.sleep(600)
        return int(ti.try_number)

    sleep_on_the_first_try()


@dag(schedule=None)
def harness_connection() -> None:
    @task
    def read(*, dag_run: Any = None) -> str:
        connection = BaseHook.get_connection(dag_run.conf["conn_id"])
        return f"{connection.host} {len(connection.password)} {connection.extra_dejson['download_hosts'][0]}"

    read()


harness_defer()
harness_kill()
harness_connection()
