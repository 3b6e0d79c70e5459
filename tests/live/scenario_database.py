# SPDX-License-Identifier: Apache-2.0
"""Looks into Airflow's database: a dozen scenarios that keep asking the API server would take it from the tasks."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import psycopg2


class Database:
    """One connection, for all threads.

    :param url: as in ``[database] sql_alchemy_conn``.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.replace("+psycopg2", ""))
        self._connection.autocommit = True
        self._lock = threading.Lock()

    def row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """Give the first row of an answer."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute(query, values)
            row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    def change(self, statement: str, *values: Any) -> None:
        """Change something, as the passing of time would."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute(statement, values)


database = cache(Database)
"""The one of a URL."""
