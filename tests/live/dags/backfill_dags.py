# SPDX-License-Identifier: Apache-2.0
"""The backfill of the examples under a second name, so that two runs of one day are under way at the same time."""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG

EXAMPLE = Path(__file__).resolve().parents[3] / "dags" / "wan_backfill_dataset.py"


def example(dag_id: str) -> DAG:
    """Return the example's Dag under another name."""
    source = EXAMPLE.read_text()
    names: dict[str, object] = {"__name__": dag_id, "__doc__": __doc__}
    assert source.count('"wan_backfill_dataset"') == 1
    exec(compile(source.replace('"wan_backfill_dataset"', repr(dag_id)), __file__, "exec"), names)
    dag = names["dag"]
    assert isinstance(dag, DAG)
    return dag


dag = example("backfill_dataset_again")
