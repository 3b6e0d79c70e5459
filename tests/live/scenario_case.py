# SPDX-License-Identifier: Apache-2.0
"""One live scenario: its image, its run, the failure it injects, and the check of the ledger."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import requests
from airflow import __version__ as airflow_version

from demo.airflow_client import OVER, TASK_OVER, TaskKey, wait_until
from tests.live import scenario_table
from tests.live.harness_live import IMAGES_BUCKET, VIDEOS_BUCKET, Live
from tests.live.scenario_database import Database, database

VIDEO_BYTES = 300_000
PATIENCE_S = 600
"""How long anything is waited for: a busy machine is slow, and that proves nothing."""
QUICK_S = 2
"""A ``timeout`` of the connection that makes the claim of a dead process old within seconds."""
HAS_STATE_STORE = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)
HAS_ON_KILL = HAS_STATE_STORE
"""Both came with Airflow 3.3."""


_known_dags: set[str] = set()


def need_state_store() -> None:
    """Skip where a record needs a journal in a bucket."""
    if not HAS_STATE_STORE:
        pytest.skip(f"Airflow {airflow_version} has no task state store: records need a journal there")


def need_on_kill() -> None:
    """Skip where Airflow does not tell a trigger that its task was taken away."""
    if not HAS_ON_KILL:
        pytest.skip(f"Airflow {airflow_version} has no on_kill of triggers: what is deferred runs on")


class Case:
    """One scenario.

    :param name: prefix of all that is this scenario's, and its label in the table.
    :param journal: whether its record lives in a bucket; False: in the task state store; None (default): it does
        not matter, so in the task state store where there is one.
    :param account: whether it gets an account and a connection of its own.
    """

    def __init__(self, live: Live, name: str, *, journal: bool | None = None, account: bool = False) -> None:
        if journal is False:
            need_state_store()
        if journal is None:
            journal = not HAS_STATE_STORE
        self.live = live
        self.name = self.label = name
        self.img_url = live.image(name)
        self.conf: dict[str, Any] = {"img_url": self.img_url, "name": name}
        self.conn_id = "wan_default"
        if account:
            self.conn_id = self.conf["conn_id"] = f"wan-{name}"
            self.rotate_token()
        if journal:
            self.conf["journal"] = f"gs://{VIDEOS_BUCKET}/_journal/{name}"
        self.journal_prefix = f"_journal/{name}/"
        self.database: Database = database(live.airflow.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        self._images = {self.img_url}
        self._harmed_at: float | None = None
        self._recovered_s: float | None = None

    # -- runs ----------------------------------------------------------------------------------------------

    def start(self, dag_id: str, **conf: Any) -> str:
        """Start a run for this scenario's image, and return its id."""
        if dag_id not in _known_dags:
            self.live.airflow.wait_for_dags(dag_id, timeout_s=PATIENCE_S)
            self.live.client.unpause(dag_id)
            _known_dags.add(dag_id)
        return self.live.client.trigger(dag_id, self.conf | conf)

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> TaskKey:
        """Name a task of a run."""
        return TaskKey(dag_id, run_id, task_id, map_index)

    def more_images(self, count: int) -> list[str]:
        """Return this scenario's image and ``count`` more."""
        more = [self.live.image(self.name) for _ in range(count)]
        self._images.update(more)
        return [self.img_url, *more]

    def manifest(self, images: list[str]) -> str:
        """Write a manifest of these images into their bucket, for a batch, and return its address."""
        lines = "".join(json.dumps({"image": image}) + "\n" for image in images)
        reply = requests.post(
            f"{self.live.sandbox.bucket_url}/upload/storage/v1/b/{IMAGES_BUCKET}/o",
            params={"uploadType": "media", "name": f"{self.name}.jsonl"},
            data=lines.encode(),
            timeout=30,
        )
        reply.raise_for_status()
        return f"gs://{IMAGES_BUCKET}/{self.name}.jsonl"

    def finish(self, dag_id: str, run_id: str) -> None:
        """Wait until a run has ended well, which is when it has recovered."""
        self.ends(dag_id, run_id)
        self.recovered()

    def ends(self, dag_id: str, run_id: str, state: str = "success") -> None:
        """Wait for a run's end, which must be this one."""

        def over() -> str | None:
            row = self.database.row("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", dag_id, run_id)
            return row[0] if row and row[0] in OVER else None

        ended = self.wait_until(over, f"the end of {dag_id} {run_id}")
        assert ended == state, f"{ended}, not {state}: {self.live.client.why_failed(dag_id, run_id)}"

    def wait_task(self, task: TaskKey, *states: str, try_number: int = 1) -> int:
        """Wait until a task is in one of the states, in this try or a later one; return the number of the try."""

        def reached() -> int | None:
            row = self.database.task_instance("state, try_number", task)
            if row is None or row[0] not in (states or TASK_OVER) or row[1] < try_number:
                return None
            return int(row[1])

        return int(self.wait_until(reached, f"{task} in {states} and try {try_number}"))

    def wait_until(self, check: Callable[[], Any], what: str) -> Any:
        """Wait for anything that can be seen; ``what`` is for the message."""
        return wait_until(check, f"{what} ({self.name})", timeout_s=PATIENCE_S, every_s=0.3)

    # -- harm ----------------------------------------------------------------------------------------------

    def api_fault(self, call: str, fault: str, *, img_url: str | None = None, **rule: Any) -> str:
        """Switch a fault of the API on, for this scenario's image alone."""
        return self.live.sandbox.add_fault(call, fault, img_url_contains=img_url or self.img_url, **rule)

    def wait_hit(self, rule_id: str, *, hits: int = 1) -> None:
        """Wait until a fault has hit."""

        def has_hit() -> bool:
            rules = self.live.sandbox.control("faults")["faults"]
            return any(rule["id"] == rule_id and rule["hits"] >= hits for rule in rules)

        self.wait_until(has_hit, f"{hits} hits of fault {rule_id}")

    def kill(self, task: TaskKey, **how: Any) -> None:
        """SIGKILL the process of a running task; from now on it has to recover."""
        self.live.airflow.kill_task(task, **how)
        self.mark_failure()

    def mark_failure(self) -> None:
        """Record the moment of the injected failure."""
        self._harmed_at = time.monotonic()

    def settling(self) -> None:
        """Begin a second act, with a line of its own in the table: a person settles what is unknown."""
        self.label += ", settled"
        self._recovered_s = None
        self.mark_failure()

    def recovered(self) -> None:
        """Record that the scenario has recovered."""
        if self._harmed_at is not None and self._recovered_s is None:
            self._recovered_s = time.monotonic() - self._harmed_at

    def give_up_on_answers_after(self, seconds: float) -> None:
        """Set the connection's ``timeout``, which says for how long somebody else may be submitting."""
        self._connect(timeout=seconds)

    def revoke_token(self) -> None:
        """Revoke the account's token."""
        self.live.sandbox.control("tokens", {"revoke": self._token})

    def rotate_token(self) -> None:
        """Rotate the token of the account and of the connection."""
        self._token = f"token-of-{self.name}-{uuid.uuid4().hex}"
        self.live.sandbox.control("tokens", {"add": self._token, "account": self.name})
        self._connect()

    def _connect(self, **extra: Any) -> None:
        self.live.set_connection(self.conn_id, self._token)
        if extra:
            known = json.loads(self.live.sandbox.connection_extra)
            body = {"connection_id": self.conn_id, "conn_type": "wan", "extra": json.dumps(known | extra)}
            path = f"/connections/{self.conn_id}"
            self.live.client.api("PATCH", path, body, query={"update_mask": ["extra"]})

    # -- what is seen --------------------------------------------------------------------------------------

    def purchases(self) -> list[dict[str, Any]]:
        """What was bought for this scenario, by the sandbox's ledger."""
        return [one for one in self.live.sandbox.ledger()["purchases"] if one["img_url"] in self._images]

    def wait_purchase(self) -> str:
        """Wait until a request is bought, and return its id."""
        return str(self.wait_until(self.purchases, "a purchase")[0]["request_id"])

    def request_ids(self, count: int) -> list[str]:
        """Wait until this many requests are bought, and return their ids."""
        self.wait_until(lambda: len(self.purchases()) >= count, f"{count} purchases")
        return [str(one["request_id"]) for one in self.purchases()]

    def wait_asked(self, request_id: str, *, times: int = 1) -> None:
        """Wait until somebody asks for a request: it is remembered by then."""

        def asked() -> bool:
            calls = [one["status_calls"] for one in self.purchases() if one["request_id"] == request_id]
            return sum(calls) >= times

        self.wait_until(asked, f"call {times} for request {request_id}")

    def cancels(self) -> list[dict[str, Any]]:
        """Cancels that were asked for, whatever came of them."""
        ids = {one["request_id"] for one in self.purchases()}
        return [one for one in self.live.sandbox.ledger()["cancels"] if one["request_id"] in ids]

    def wait_cancel(self) -> None:
        """Wait until a cancel was asked for."""
        self.wait_until(self.cancels, "a cancel")

    def log(self, task: TaskKey) -> str:
        """Log of all tries of a task, its triggers included."""
        return self.live.client.task_log(task)

    def wait_log(self, task: TaskKey, text: str) -> None:
        """Wait until a task's log has a text, or its triggerer's.

        Airflow closes the log of a trigger about a second after its ``on_kill`` has begun; what a busy machine logs
        later is in the triggerer's output.
        """

        def logged() -> bool:
            if text in self.log(task):
                return True
            outputs = [own.log_path for own in self.live.airflow.processes if own.name.startswith("triggerer")]
            lines = (line for path in outputs for line in path.read_text(errors="replace").splitlines())
            return any(text in line and task.run_id in line for line in lines)

        self.wait_until(logged, f"{text!r} in the log of {task}")

    def videos(self) -> list[dict[str, Any]]:
        """What has landed for this scenario."""
        return self.live.videos(f"{self.name}/")

    # -- judgement -----------------------------------------------------------------------------------------

    def judge(self, *, bought: int = 1, charged: int | None = None, landed: int = 1, cancelled: int = 0) -> None:
        """Compare the ledger and the bucket with the promise, and add a line to the table.

        :param bought: requests that may have been bought.
        :param charged: how many of them are paid for; default: the same less the cancelled ones.
        :param landed: videos, each whole and written once.
        :param cancelled: requests that should have been cancelled.
        """
        purchases, videos = self.purchases(), self.videos()
        really_cancelled = sum(one["cancelled"] for one in purchases)
        whole = [video for video in videos if video["size_bytes"] == VIDEO_BYTES and video["writes"] == 1]
        charged = bought - cancelled if charged is None else charged
        really_charged = sum(one["charged_usd"] > 0 or one["state"] == "running" for one in purchases)
        seen = (len(purchases), really_charged, really_cancelled, len(videos), len(whole))
        promised = (bought, charged, cancelled, landed, landed)
        scenario_table.add(
            scenario_table.Row(
                scenario=self.label,
                bought=len(purchases),
                charged=really_charged,
                right_cancels=min(cancelled, really_cancelled),
                wrong_cancels=max(0, really_cancelled - cancelled),
                landed=len(whole),
                recovered_s=self._recovered_s,
                fine=seen == promised,
            )
        )
        assert seen == promised, (
            f"(bought, charged, cancelled, landed, whole and written once) is {seen}, not {promised}: "
            f"{purchases} {videos}"
        )
