# SPDX-License-Identifier: Apache-2.0
"""Queries of Airflow's database: a dozen scenarios that poll the API server would slow down the tasks."""

from __future__ import annotations

import threading
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from demo.airflow_client import TaskKey


class Database:
    """One connection, for all threads.

    :param url: as in ``[database] sql_alchemy_conn``.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.replace("+psycopg2", ""))
        self._connection.autocommit = True
        self._lock = threading.Lock()

    def row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row of an answer."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute(query, values)
            row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    def task_instance(self, columns: str, task: TaskKey) -> tuple[Any, ...] | None:
        """Return columns of a task instance."""
        query = f"SELECT {columns} FROM task_instance WHERE dag_id = %s AND run_id = %s AND task_id = %s"
        return self.row(
            f"{query} AND {self._index_column} = %s",
            *(task.dag_id, task.run_id, task.task_id, task.map_index),
        )

    @cached_property
    def _index_column(self) -> str:
        """How Airflow calls the index of a mapped task: another word since 3.4."""
        has_regions = self.row(
            "SELECT 1 FROM information_schema.columns WHERE table_name = %s AND column_name = %s",
            *("task_instance", "region_index"),
        )
        return "region_index" if has_regions else "map_index"

    def change(self, statement: str, *values: Any) -> None:
        """Change something, as the passing of time would."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute(statement, values)


database = cache(Database)
"""The one of a URL."""
