# SPDX-License-Identifier: Apache-2.0
"""Airflow's scheduler or Celery worker with the tasks' imports preloaded: it forks each task from this process.

``python demo/scheduler.py scheduler ...`` takes the arguments of ``airflow``. A forked task would otherwise import
Airflow's task runner, the provider and the clients of the API and of the bucket again, for a second or two of CPU.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

from airflow.__main__ import main

PRELOADED = (
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.dag_processing.dagbag",
    "airflow.providers.standard.operators.python",
    "airflow_provider_wan.decorators.wan",
    "airflow_provider_wan.hooks.wan",
    "airflow_provider_wan.hooks.gcs",
    "airflow_provider_wan.operators.wan",
    "airflow_provider_wan.operators.wan_batch",
    "airflow_provider_wan.sensors.wan",
    "airflow_provider_wan.transfers.wan_to_gcs",
    "PIL.Image",
    "aiohttp",
    "google.cloud.storage",
    "jsonschema",
    "requests",
)

if __name__ == "__main__":
    if {"scheduler", "worker"} & set(sys.argv):
        for module in PRELOADED:
            with suppress(ImportError):  # another version of Airflow has it elsewhere
                importlib.import_module(module)
    main()
