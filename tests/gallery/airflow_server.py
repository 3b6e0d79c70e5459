# SPDX-License-Identifier: Apache-2.0
"""Airflow's API server in this process with the gallery in it, and runs written into its database.

Airflow's server takes seconds to import, so nothing of it is imported when tests are collected.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.gallery.run_cards import Entry, RunTask

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

DAG_ID = "content"
SOME_DAY = datetime(2026, 1, 15, tzinfo=UTC)


class AirflowServer:
    """Airflow's API server, asked over HTTP in this process."""

    def __init__(self) -> None:
        from airflow.api_fastapi.app import create_app

        self.app: FastAPI = create_app("core")
        self._visitors: dict[str | None, TestClient] = {}

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Listen on a free port, in a thread, and return the address."""
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, name="airflow-api", daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "Airflow's API server did not start"
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    def as_user(self, role: str | None = "VIEWER") -> TestClient:
        """Return a client that is logged in with a role; None: not logged in."""
        from starlette.testclient import TestClient

        if role not in self._visitors:
            self._visitors[role] = TestClient(self.app, headers={} if role is None else self.login(role))
        return self._visitors[role]

    def token(self, role: str) -> str:
        """Return the token of a user with a role; the empty role may do nothing."""
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        user = SimpleAuthManagerUser(username=role or "nobody", role=role or None)
        found: str = get_auth_manager().generate_jwt(user)
        return found

    def login(self, role: str) -> dict[str, str]:
        """Return the headers of a user with a role."""
        return {"Authorization": f"Bearer {self.token(role)}"}

    def get(self, route: str, run_id: str, *, role: str | None = "VIEWER", dag_id: str = DAG_ID, **query: Any) -> Any:
        """Ask for a route of the gallery."""
        path = f"/wan/dags/{dag_id}/{route}"
        return self.as_user(role).get(path, params={"run_id": run_id, **query}, follow_redirects=False)


def write_run(
    run_id: str,
    entries: Iterable[Entry] = (),
    tasks: Iterable[RunTask] = (),
    *,
    rendered: Mapping[str, Mapping[str, Any]] | None = None,
    state: str = "running",
    dag_id: str = DAG_ID,
) -> None:
    """Write a run into the database as its tasks would have left it.

    :param rendered: template fields by task id.
    """
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import func, insert, select

    entries = list(entries)
    versions = select(DagVersion.id).where(DagVersion.dag_id == dag_id).order_by(DagVersion.version_number.desc())
    known = {task.task: task for task in tasks}
    for entry in entries:
        known.setdefault(entry.task, RunTask(*entry.task, "success", "Other"))
    with create_session() as session:
        number = (session.scalar(select(func.max(DagRun.id))) or 0) + 1
        version = session.scalar(versions)  # the UI shows only runs of a Dag that it knows
        run = {"id": number, "dag_id": dag_id, "run_id": run_id, "run_type": "manual", "state": state}
        run |= {"run_after": SOME_DAY, "start_date": SOME_DAY, "created_dag_version_id": version}
        session.execute(insert(DagRun.__table__).values(**run))
        where = {"dag_id": dag_id, "run_id": run_id}
        for task in known.values():
            one = {**where, "task_id": task.task_id, "map_index": task.map_index}
            more = {"state": task.state, "operator": task.operator, "dag_version_id": version}
            more |= {"pool": "default_pool", "pool_slots": 1}
            session.execute(insert(TaskInstance.__table__).values(**one, **more))
            if fields := (rendered or {}).get(task.task_id):
                session.execute(insert(RenderedTaskInstanceFields.__table__).values(**one, rendered_fields=fields))
    write_xcoms(run_id, entries, dag_id=dag_id)


def write_xcoms(run_id: str, entries: Iterable[Entry], *, dag_id: str = DAG_ID) -> None:
    """Write XComs of a run into the database, as a worker stores them: as JSON text."""
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select

    with create_session() as session:
        number = session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        rows = [
            {
                "dag_run_id": number,
                "dag_id": dag_id,
                "run_id": run_id,
                "task_id": entry.task_id,
                "map_index": entry.map_index,
                "key": entry.key,
                "value": json.dumps(entry.value),
            }
            for entry in entries
        ]
        if rows:
            session.execute(insert(XComModel.__table__), rows)
