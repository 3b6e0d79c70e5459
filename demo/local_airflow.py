# SPDX-License-Identifier: Apache-2.0
"""A real Airflow on this machine, in its own home and on free ports; ``stop`` ends all of its processes.

``make demo`` and the live tests use the same class::

    with LocalAirflow(home, dags_folders=["dags"]) as airflow:
        run_id = airflow.client.trigger("wan_single_video")
        airflow.client.wait_run("wan_single_video", run_id, timeout_s=60)
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from demo.airflow_client import AirflowApiError, AirflowClient, TaskKey, wait_until
from demo.airflow_settings import PASSWORDS_FILE, AirflowSettings
from demo.processes import OwnProcess, free_port, stop_all, useful_end

_SCHEDULER = Path(__file__).resolve().with_name("scheduler.py")


class LocalAirflowError(RuntimeError):
    """A component of the local Airflow did not start, or ended; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Triggerer:
    """A triggerer process and its job id in Airflow."""

    process: OwnProcess
    job_id: int


class LocalAirflow:
    """Scheduler (LocalExecutor), Dag processor, API server and triggerers, each in its own session.

    :param home: the folder for everything that Airflow writes; it is created if missing.
    :param dags_folders: each becomes a Dag bundle.
    :param env: environment of all components, tasks and triggers: connections, variables, emulators.
    :param database: ``"sqlite"``, a file in ``home`` (one triggerer only), or a PostgreSQL URL such as
        ``postgresql+psycopg2://airflow@127.0.0.1:5433/airflow``.
    :param triggerers: how many to start; more can follow with :meth:`start_triggerer`.
    :param health_threshold_s: whole seconds without a heartbeat after which a triggerer counts
        as dead and another one takes over; None: Airflow's default of 30.
    :param parallelism: the most tasks that run at the same time.
    :param users: the role of each user; the password is the user's name. The client logs in as the first one, who
        must be an admin. None (default): every visitor is an admin, without a password.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags_folders: Sequence[Path | str],
        env: Mapping[str, str] | None = None,
        database: str = "sqlite",
        triggerers: int = 1,
        health_threshold_s: int | None = None,
        parallelism: int = 8,
        users: Mapping[str, str] | None = None,
    ) -> None:
        if database == "sqlite" and triggerers > 1:
            raise ValueError("two triggerers need PostgreSQL: SQLite has no row locks")
        self.home = home.resolve()
        self._database = f"sqlite:///{self.home}/airflow.db?timeout=60" if database == "sqlite" else database
        self._initial_triggerers = triggerers
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        settings = AirflowSettings(
            home=self.home,
            dags_folders=[Path(folder).resolve() for folder in dags_folders],
            database=self._database,
            port=self._port,
            health_threshold_s=health_threshold_s,
            parallelism=parallelism,
            users=users,
        )
        self.env = settings.environment(extra=env or {})
        user = next(iter(users)) if users else None
        self.client = AirflowClient(self.url, log_folder=self.home / "logs", user=user)
        self._passwords = {name: name for name in users or {}}
        self.processes: list[OwnProcess] = []
        self.triggerers: list[Triggerer] = []
        self._triggerers_started = 0
        self._starting_triggerer = threading.Lock()

    def __enter__(self) -> LocalAirflow:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 120) -> None:
        """Create the database, start every component and wait until all of them are healthy.

        :raises LocalAirflowError: a component ended, or was not healthy in time; the others are stopped.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        if self._passwords:
            (self.home / PASSWORDS_FILE).write_text(json.dumps(self._passwords))
        atexit.register(self.stop)
        deadline = time.monotonic() + timeout_s
        try:
            self._make_database(timeout_s=timeout_s)
            self._start("api-server")
            self._start("scheduler", "--skip-serve-logs")
            self._start("dag-processor")
            first = self._start_triggerer_process() if self._initial_triggerers else None
            self._wait_healthy(deadline, triggerer=first is not None)
            if first is not None:
                self.triggerers.append(Triggerer(first, self._new_triggerer_job_id(first, set(), deadline)))
            while len(self.triggerers) < self._initial_triggerers:
                self.start_triggerer()
        except BaseException:
            self.stop()
            raise

    def stop(self, *, grace_s: float = 4) -> None:
        """End every process that was started here. Idempotent."""
        atexit.unregister(self.stop)
        stop_all(self.processes, grace_s=grace_s)
        self.processes.clear()
        self.triggerers.clear()

    def start_triggerer(self, *, timeout_s: float = 60) -> Triggerer:
        """Start one more triggerer and wait for its first heartbeat."""
        deadline = time.monotonic() + timeout_s
        # One at a time: the new process is identified by the job id that was not there before.
        with self._starting_triggerer:
            before = self.client.triggerer_job_ids() | {triggerer.job_id for triggerer in self.triggerers}
            process = self._start_triggerer_process()
            triggerer = Triggerer(process, self._new_triggerer_job_id(process, before, deadline))
            self.triggerers.append(triggerer)
        return triggerer

    def triggerer_of(self, task: TaskKey, *, timeout_s: float = 30) -> Triggerer:
        """Wait until a triggerer runs the trigger of a deferred task, and return it."""

        def runs_it() -> Triggerer | None:
            # Read each time: more triggerers may have started.
            by_job = {triggerer.job_id: triggerer for triggerer in self.triggerers}
            return by_job.get(self.client.triggerer_of(task) or -1)

        return wait_until(runs_it, f"a triggerer that runs the trigger of {task}", timeout_s=timeout_s)

    def kill_triggerer(self, triggerer: Triggerer) -> None:
        """SIGKILL a triggerer with all its processes, and no longer expect it to run."""
        # Before the kill: a concurrent start checks that all listed triggerers are alive.
        self._forget(triggerer)
        triggerer.process.kill()

    def terminate_triggerer(self, triggerer: Triggerer) -> None:
        """SIGTERM a triggerer, wait until it has ended, and no longer expect it to run."""
        self._forget(triggerer)
        triggerer.process.terminate()

    def _forget(self, triggerer: Triggerer) -> None:
        self.triggerers.remove(triggerer)
        self.processes.remove(triggerer.process)

    def wait_taken_over(self, task: TaskKey, *, lost: Triggerer, timeout_s: float = 60) -> Triggerer:
        """Wait until a triggerer other than the lost one runs the trigger of a deferred task."""

        def other() -> Triggerer | None:
            by_job = {triggerer.job_id: triggerer for triggerer in self.triggerers if triggerer is not lost}
            return by_job.get(self.client.triggerer_of(task) or -1)

        what = f"the trigger of {task} taken over from {lost.process.name}"
        return wait_until(other, what, timeout_s=timeout_s)

    def pid_of_task(self, task: TaskKey, *, timeout_s: float = 30) -> int:
        """Wait until a task runs, and return the id of the process that runs the operator's ``execute``.

        Airflow reports it as the ``pid`` of the task instance. Its parent is the supervisor, a worker process of
        the LocalExecutor.
        """

        def running() -> int | None:
            try:
                row = self.client.task_instance(task)
            except AirflowApiError as error:
                if error.status != 404:
                    raise
                return None
            alive = row["state"] == "running" and row["pid"] and psutil.pid_exists(row["pid"])
            return int(row["pid"]) if alive else None

        return wait_until(running, f"a process that runs {task}", timeout_s=timeout_s, every_s=0.05)

    def kill_task(self, task: TaskKey, *, with_supervisor: bool = False) -> int:
        """SIGKILL the process of a running task; its supervisor reports that at once.

        :param with_supervisor: kill the LocalExecutor's worker first, as when a machine dies: the end is not
            reported, and Airflow notices the missing heartbeat.
        """
        process = psutil.Process(self.pid_of_task(task))
        if os.getsid(process.pid) not in {own.pid for own in self.processes}:
            raise LocalAirflowError(
                f"process {process.pid} of {task} does not belong to this Airflow; it was not killed"
            )
        if with_supervisor and (supervisor := process.parent()) is not None:
            supervisor.send_signal(signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
        return process.pid

    def wait_for_dags(self, *dag_ids: str, timeout_s: float = 60) -> None:
        """Wait until these Dags are parsed; raise an import error with its traceback."""

        def parsed() -> bool:
            self.check()
            if set(dag_ids) <= self.client.dags_seen():
                return True
            if errors := self.client.import_errors():
                raise LocalAirflowError(f"the Dag processor could not import a Dag file:\n{errors}")
            return False

        wait_until(parsed, f"Dags {', '.join(dag_ids)} parsed", timeout_s=timeout_s)

    def check(self) -> None:
        """Raise if a component has ended.

        :raises LocalAirflowError: with the end of its log.
        """
        for process in tuple(self.processes):
            # Another thread may have ended and removed it.
            if not process.alive and process in self.processes:
                raise LocalAirflowError(
                    f"the {process.name} ended with code {process.exit_code}. "
                    f"The end of {process.log_path}:\n{process.log_end()}"
                )

    def _make_database(self, *, timeout_s: float) -> None:
        log_path = self.home / "db-migrate.log"
        with log_path.open("w") as log:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            made = subprocess.run(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
        if made.returncode:
            end = useful_end(log_path.read_text(errors="replace"))
            raise LocalAirflowError(f"`airflow db migrate` failed. The end of {log_path}:\n{end}")
        if self._database.startswith("sqlite"):
            # With WAL, readers and one writer do not block each other. The mode is stored in the file.
            with sqlite3.connect(self.home / "airflow.db") as database:
                database.execute("PRAGMA journal_mode=WAL")
            database.close()

    def _start(self, *command: str, name: str | None = None, env: Mapping[str, str] | None = None) -> OwnProcess:
        name, env = name or command[0], {**self.env, **(env or {})}
        program = [str(_SCHEDULER)] if command[0] in ("scheduler", "celery") else ["-m", "airflow"]
        process = OwnProcess(
            name,
            [sys.executable, *program, *command],
            env=env,
            log_path=self.home / f"{name}.log",
            cwd=Path(env["AIRFLOW_HOME"]),
        )
        self.processes.append(process)
        return process

    def _start_triggerer_process(self) -> OwnProcess:
        self._triggerers_started += 1
        return self._start("triggerer", "--skip-serve-logs", name=f"triggerer-{self._triggerers_started}")

    def _wait_healthy(self, deadline: float, *, triggerer: bool) -> None:
        wanted = {"metadatabase", "scheduler", "dag_processor"} | ({"triggerer"} if triggerer else set())
        health: dict[str, str] = {}

        def healthy() -> bool:
            self.check()
            with suppress(requests.RequestException):
                health.update(self.client.health())
            return all(health.get(part) == "healthy" for part in wanted)

        try:
            wait_until(healthy, "", timeout_s=deadline - time.monotonic())
        except TimeoutError:
            raise LocalAirflowError(self._not_healthy(wanted, health)) from None

    def _not_healthy(self, wanted: set[str], health: Mapping[str, str]) -> str:
        if not health:
            blamed, state = "api-server", f"no answer at {self.url}"
        else:
            part = next(name for name in sorted(wanted) if health.get(name) != "healthy")
            blamed, state = part.replace("_", "-"), f"{part} is {health.get(part)}"
        process = next((p for p in self.processes if p.name.startswith(blamed)), self.processes[0])
        return f"Airflow was not healthy in time: {state}. The end of {process.log_path}:\n{process.log_end()}"

    def _new_triggerer_job_id(self, process: OwnProcess, before: set[int], deadline: float) -> int:
        def registered() -> set[int]:
            self.check()
            return self.client.triggerer_job_ids() - before

        new = wait_until(registered, f"{process.name} alive", timeout_s=deadline - time.monotonic())
        return max(new)
