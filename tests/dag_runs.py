# SPDX-License-Identifier: Apache-2.0
"""Run a Dag with ``dag.test()``: Airflow's own task runner, triggers, XComs and task state store, on SQLite."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    import pytest
    from airflow.models.dagrun import DagRun

_HEAD = """
from __future__ import annotations
import pendulum
from airflow.sdk import DAG, task
from airflow_provider_wan.operators.wan import WanCancelOperator, WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

with DAG({dag_id!r}, schedule=None, params={params!r}, default_args={default_args!r}) as dag:
"""
EXAMPLES = Path(__file__).resolve().parent.parent / "dags"
#: Default arguments for dag.test(): no delays between retries.
_DEFAULT_ARGS = {"retry_delay": 0.0}


@dataclass(frozen=True)
class Run:
    """A finished run."""

    dag_run: DagRun

    @property
    def run_id(self) -> str:
        return str(self.dag_run.run_id)

    @property
    def state(self) -> str:
        return str(self.dag_run.state)

    def states(self) -> dict[str, str]:
        """Return the state of each task instance, by ``task_id`` or ``task_id[map_index]``."""
        return {_key(ti): str(ti.state) for ti in self.dag_run.get_task_instances()}

    def xcom(self, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """Return an XCom of a task."""
        found = [ti for ti in self.dag_run.get_task_instances() if _key(ti) == _name(task_id, map_index)]
        return found[0].xcom_pull(task_ids=task_id, key=key, map_indexes=None if map_index < 0 else map_index)


def _key(ti: Any) -> str:
    return _name(ti.task_id, ti.map_index)


def _name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id}[{map_index}]"


class DagFolder:
    """A dags folder for one test: ``dag.test()`` finds a Dag only where Airflow looks for Dags."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        bundle = {
            "name": f"tests-{uuid4().hex[:8]}",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder)},
        }
        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))

    def write(self, body: str, *, params: Mapping[str, Any] | None = None, **default_args: Any) -> Callable[..., Run]:
        """Write a Dag with these tasks, and return a function that runs it: ``run(conf)``."""
        dag_id = f"dag_{uuid4().hex[:8]}"
        head = _HEAD.format(dag_id=dag_id, params=dict(params or {}), default_args={**_DEFAULT_ARGS, **default_args})
        path = self._folder / f"{dag_id}.py"
        path.write_text(head + "\n".join("    " + line for line in dedent(body).splitlines()) + "\n")
        return lambda conf=None, **options: self._run(path, conf, **options)

    def _run(self, path: Path, conf: Mapping[str, Any] | None, **options: Any) -> Run:
        return _run(path, conf or {}, **options)


def run_example(name: str, conf: Mapping[str, Any], **options: Any) -> Run:
    """Run one of the example Dags, from the folder where users find them."""
    return _run(EXAMPLES / f"{name}.py", conf, **options)


def _run(path: Path, conf: Mapping[str, Any], **options: Any) -> Run:
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    DagContext.current_autoregister_module_name = path.stem  # as when Airflow parses the file
    try:
        spec.loader.exec_module(module)
    finally:
        DagContext.current_autoregister_module_name = None
    [dag] = [dag for dag, registered_in in DagContext.autoregistered_dags if registered_in is module]
    return Run(dag.test(run_conf=dict(conf), **options))
