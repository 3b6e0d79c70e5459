# SPDX-License-Identifier: Apache-2.0
"""People who answer the questions of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def person(choose: Callable[[str, list[str]], list[str]], *, questions: int = 1) -> Iterator[list[dict[str, Any]]]:
    """Answer as a person does, through Airflow's API, as soon as there is a question.

    :param choose: returns the chosen options, given the subject and the options.
    :param questions: so many are answered; it is an error if fewer are asked.
    :return: the questions.
    """
    asked: list[dict[str, Any]] = []
    failures: list[BaseException] = []

    def answer() -> None:
        try:
            _answer(choose, questions, asked)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield asked
    thread.join(120)
    if failures:
        raise failures[0]
    assert len(asked) == questions


def _answer(choose: Callable[[str, list[str]], list[str]], questions: int, asked: list[dict[str, Any]]) -> None:
    from airflow.api_fastapi.app import create_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    app = create_app(apps="core")
    token = app.state.auth_manager.generate_jwt(SimpleAuthManagerUser(username="anna", role="admin"))
    deadline = time.monotonic() + 120
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        while len(asked) < questions and time.monotonic() < deadline:
            found = client.get("/api/v2/dags/~/dagRuns/~/hitlDetails", params={"response_received": False}).json()
            for question in found.get("hitl_details", []):
                ti = question["task_instance"]
                if ti["state"] not in ("awaiting_input", "deferred"):
                    continue
                run = f"/api/v2/dags/{ti['dag_id']}/dagRuns/{ti['dag_run_id']}"
                path = f"{run}/taskInstances/{ti['task_id']}/{ti['map_index']}/hitlDetails"
                chosen = choose(question["subject"], question["options"])
                said = client.patch(path, json={"chosen_options": chosen})
                assert said.status_code == 200, said.text
                asked.append(question)
            time.sleep(0.2)
