# SPDX-License-Identifier: Apache-2.0
"""The calls of Airflow's REST API that the demo and the live tests make."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import requests

from demo.processes import useful_end
from demo.task_logs import plain_log

OVER = frozenset({"success", "failed"})
"""Final states of a Dag run."""

TASK_OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""Final states of a task instance."""


class AirflowApiError(RuntimeError):
    """The API server returned an error; the message has the call, the status and the body."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskKey:
    """Identifies a task instance by Dag, run, task and map index (-1: not mapped)."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id}"


def wait_until(
    check: Callable[[], T | None], what: str | Callable[[], str], *, timeout_s: float, every_s: float = 0.2
) -> T:
    """Return the first true value of ``check``; raise TimeoutError naming ``what`` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not seen in {timeout_s:.0f} s: {what() if callable(what) else what}")
        time.sleep(every_s)
    return value


class AirflowClient:
    """A client of Airflow's REST API.

    :param base_url: the address of the API server.
    :param log_folder: ``[logging] base_log_folder``: task logs are read from the files, which works
        after the API server has ended too.
    :param user: the user to log in as, whose password is the same; None: no login.
    """

    def __init__(self, base_url: str, *, log_folder: Path, user: str | None = None) -> None:
        self.base_url = base_url
        self._user = user
        self._log_folder = log_folder
        self._by_thread = threading.local()

    @property
    def _session(self) -> requests.Session:
        """A session per thread: live scenarios run in parallel, and a session is not thread-safe."""
        if not hasattr(self._by_thread, "session"):
            self._by_thread.session = requests.Session()
            # A proxy from the environment must not serve loopback addresses.
            self._by_thread.session.trust_env = False
        session: requests.Session = self._by_thread.session
        return session

    def api(self, method: str, path: str, json: Any = None, *, query: Mapping[str, Any] | None = None) -> Any:
        """Call ``/api/v2{path}`` and return the answer's JSON.

        :raises AirflowApiError: any status but 2xx.
        """
        for attempt in ("first", "with a new token"):
            if "Authorization" not in self._session.headers:
                self._authorize()
            reply = self._session.request(method, f"{self.base_url}/api/v2{path}", json=json, params=query, timeout=60)
            if reply.status_code != 401 or attempt != "first":
                break
            del self._session.headers["Authorization"]
        if not reply.ok:
            message = f"{method} {path} was answered {reply.status_code}: {reply.text[:500]}"
            raise AirflowApiError(message, status=reply.status_code)
        return reply.json() if reply.content else None

    def _authorize(self) -> None:
        """Fetch a token; with ``simple_auth_manager_all_admins`` this needs no password."""
        url = f"{self.base_url}/auth/token"
        if self._user is None:
            reply = self._session.get(url, timeout=20)
        else:
            login = {"username": self._user, "password": self._user}
            reply = self._session.post(url, json=login, timeout=20)
        reply.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"

    def health(self) -> dict[str, str]:
        """Return the status of each component, such as ``{"scheduler": "healthy"}``."""
        reply = self._session.get(f"{self.base_url}/api/v2/monitor/health", timeout=5)
        reply.raise_for_status()
        return {name: str(part.get("status")) for name, part in reply.json().items()}

    def pages(self, path: str, key: str, **query: Any) -> list[dict[str, Any]]:
        """Return all rows of a list that Airflow serves in pages of 100."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", path, query={"limit": 100, "offset": len(rows), **query})
            rows += page[key]
            if not page[key] or len(rows) >= page.get("total_entries", 0):
                return rows

    def triggerer_job_ids(self) -> set[int]:
        """Return the job ids of the triggerers whose heartbeat is recent."""
        return {job["id"] for job in self.pages("/jobs", "jobs", job_type="TriggererJob", is_alive=True, order_by="id")}

    def dags_seen(self) -> set[str]:
        """Return the ids of the Dags that the Dag processor has parsed."""
        return {dag["dag_id"] for dag in self.pages("/dags", "dags")}

    def import_errors(self) -> str:
        """Return each Dag file that failed to import with the end of its traceback; empty if there is none."""
        errors = self.pages("/importErrors", "import_errors")
        return "\n".join(f"{error['filename']}:\n{error['stack_trace'][-1500:]}" for error in errors)

    def unpause(self, dag_id: str) -> None:
        """Unpause a Dag."""
        self.api("PATCH", f"/dags/{_part(dag_id)}", {"is_paused": False})

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        *,
        logical_date: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Start a run and return its id.

        :param logical_date: ISO 8601 with a zone; None for a run without one.
        """
        body: dict[str, Any] = {"conf": dict(conf or {}), "logical_date": logical_date}
        if run_id is not None:
            body["dag_run_id"] = run_id
        run: dict[str, Any] = self.api("POST", f"/dags/{_part(dag_id)}/dagRuns", body)
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a Dag run: queued, running, success or failed."""
        return str(self.api("GET", _run_path(dag_id, run_id))["state"])

    def wait_run(self, dag_id: str, run_id: str, *, timeout_s: float) -> str:
        """Wait for a run and return its final state; raise TimeoutError with the state of each task."""

        def over() -> str | None:
            state = self.run_state(dag_id, run_id)
            return state if state in OVER else None

        def what() -> str:
            return f"the end of {dag_id} run {run_id}; its tasks: {self.task_states(dag_id, run_id)}"

        return str(wait_until(over, what, timeout_s=timeout_s, every_s=0.5))

    def why_failed(self, dag_id: str, run_id: str, *, at_most: int = 3) -> str:
        """Return the states of a run's tasks, and the end of the log of those that failed first."""
        rows = self.task_instances(dag_id, run_id)
        failed = sorted((row for row in rows if row["state"] == "failed"), key=lambda row: row["end_date"] or "")
        text = f"{dag_id} run {run_id}: {self.task_states(dag_id, run_id)}"
        for row in failed[:at_most]:
            task = TaskKey(dag_id, run_id, row["task_id"], row["map_index"])
            text += f"\n\nThe end of the log of {task}:\n{useful_end(self.task_log(task))}"
        return text

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a run ``success``, ``failed`` or ``queued``, as the UI does."""
        self.api("PATCH", _run_path(dag_id, run_id), {"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """Delete a run with its tasks."""
        self.api("DELETE", _run_path(dag_id, run_id))

    def task_instances(self, dag_id: str, run_id: str, task_id: str | None = None) -> list[dict[str, Any]]:
        """Return all task instances of a run, sorted by task and map index."""
        query = {} if task_id is None else {"task_id": task_id}
        rows = self.pages(f"{_run_path(dag_id, run_id)}/taskInstances", "task_instances", **query)
        return sorted(rows, key=lambda row: (row["task_id"], row["map_index"]))

    def task_instance(self, task: TaskKey) -> dict[str, Any]:
        """Return one task instance: ``state, try_number, pid, trigger, ...``."""
        row: dict[str, Any] = self.api("GET", _task_path(task))
        return row

    def wait_task(self, task: TaskKey, *states: str, timeout_s: float, try_number: int | None = None) -> dict[str, Any]:
        """Wait until a task instance is in one of the states (default: a final one), and return it.

        :param try_number: count only this try or a later one.
        """
        wanted = frozenset(states) or TASK_OVER

        def reached() -> dict[str, Any] | None:
            try:
                row = self.task_instance(task)
            except AirflowApiError as error:
                # A mapped instance exists only after its upstream task has finished.
                if error.status != 404:
                    raise
                return None
            if try_number is not None and row["try_number"] < try_number:
                return None
            return row if row["state"] in wanted else None

        def what() -> str:
            return f"{task} in {sorted(wanted)}; run: {self.task_states(task.dag_id, task.run_id)}"

        row = wait_until(reached, what, timeout_s=timeout_s, every_s=0.5)
        assert row is not None
        return row

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state of each task instance by ``task_id`` or ``task_id[map_index]``."""
        return {
            ti["task_id"] + (f"[{ti['map_index']}]" if ti["map_index"] >= 0 else ""): str(ti["state"])
            for ti in self.task_instances(dag_id, run_id)
        }

    def set_state(self, task: TaskKey, state: str) -> None:
        """Mark a task instance ``success``, ``failed`` or ``skipped``, as the UI does."""
        self.api("PATCH", _task_path(task), {"new_state": state})

    def clear(self, task: TaskKey, *, downstream: bool = False) -> None:
        """Clear a task instance, in whatever state it is, so that it runs again."""
        only = [task.task_id, task.map_index] if task.map_index >= 0 else task.task_id
        body = {
            "dry_run": False,
            "dag_run_id": task.run_id,
            "task_ids": [only],
            "only_failed": False,
            "include_downstream": downstream,
        }
        self.api("POST", f"/dags/{_part(task.dag_id)}/clearTaskInstances", body)

    def xcom(self, task: TaskKey, key: str = "return_value") -> Any:
        """Return the value of an XCom, or None if there is none."""
        query = {"map_index": task.map_index, "stringify": False}
        try:
            entry = self.api("GET", f"{_task_path(task, mapped=False)}/xcomEntries/{_part(key)}", query=query)
        except AirflowApiError as error:
            if error.status == 404:
                return None
            raise
        return entry["value"]

    def triggerer_of(self, task: TaskKey) -> int | None:
        """Return the job id of the triggerer that runs a task's trigger, or None if none does yet."""
        trigger = self.task_instance(task)["trigger"]
        return trigger and trigger["triggerer_id"]

    def task_log(self, task: TaskKey) -> str:
        """Return the log of all tries, with the lines of the trigger, as plain text."""
        path = Path(f"dag_id={task.dag_id}", f"run_id={task.run_id}", f"task_id={task.task_id}")
        if task.map_index >= 0:
            path /= f"map_index={task.map_index}"
        # A worker of a cluster has a folder of its own.
        folders = [self._log_folder, *sorted(self._log_folder.parent.glob("worker-*/logs"))]
        parts = [part for folder in folders for part in sorted((folder / path).glob("attempt=*.log*"))]
        return "\n".join(f"--- {part.name}\n{plain_log(part.read_text(errors='replace'))}" for part in parts)


def _part(value: str) -> str:
    return quote(value, safe="")


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}"


def _task_path(task: TaskKey, *, mapped: bool = True) -> str:
    path = f"{_run_path(task.dag_id, task.run_id)}/taskInstances/{_part(task.task_id)}"
    return f"{path}/{task.map_index}" if mapped and task.map_index >= 0 else path
