# SPDX-License-Identifier: Apache-2.0
"""Live scenarios run side by side in one Airflow: most of their time is waiting, so they wait together.

A scenario is written as a test with the single argument ``live``::

    @scenario
    def test_a_killed_worker_buys_once(live: Live) -> None:
        run_id = live.start("live_submit", {"img_url": live.image()})
        ...

All selected scenarios start when the first one is requested, each in its own thread; each is reported under
its own name. ``@scenario(alone=True)`` is for scenarios that would disturb the others, such as a frozen
triggerer: they run one after the other when all others have ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import pytest

from tests.live.harness_live import Live

SCENARIO_TIMEOUT_S = 900
"""No scenario may take longer; its own waits are shorter and say more."""

AT_ONCE = 12
"""More at the same time take longer: tasks start one after the other then, and miss their heartbeats."""


Body = Callable[[Live], None]


def scenario(body: Body | None = None, *, alone: bool = False) -> Any:
    """Turn a function of ``live`` into a test that runs concurrently with the others."""
    if body is None:
        return lambda function: scenario(function, alone=alone)

    # Not functools.wraps: pytest would look through it and ask for the fixture ``live``.
    def test(side_by_side: SideBySide) -> None:
        side_by_side.result(body)

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    test.scenario = body  # type: ignore[attr-defined]
    test.alone = alone  # type: ignore[attr-defined]
    return pytest.mark.live(test)


class SideBySide:
    """Runs the selected scenarios and keeps what became of each."""

    def __init__(self, live: Live, items: Iterable[pytest.Item]) -> None:
        functions = [function for item in items if hasattr(function := getattr(item, "function", None), "scenario")]
        self._outcomes: dict[Body, Future[None]] = {function.scenario: Future() for function in functions}
        self._room = threading.Semaphore(AT_ONCE)
        together = [function.scenario for function in functions if not function.alone]
        alone = [function.scenario for function in functions if function.alone]
        # Daemons: a scenario that hangs must not keep pytest from ending.
        threading.Thread(target=self._run_all, args=(live, together, alone), daemon=True).start()

    def _run_all(self, live: Live, together: list[Body], alone: list[Body]) -> None:
        threads = [self._start(body, live) for body in together]
        for thread in threads:
            thread.join(SCENARIO_TIMEOUT_S)
        for body in alone:
            self._start(body, live).join(SCENARIO_TIMEOUT_S)

    def _start(self, body: Body, live: Live) -> threading.Thread:
        def run() -> None:
            outcome = self._outcomes[body]
            try:
                with self._room:
                    body(live)
            # Also pytest's own failures and skips, which are no Exceptions: they belong to the test's thread.
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        thread = threading.Thread(target=run, name=body.__name__, daemon=True)
        thread.start()
        return thread

    def result(self, body: Body) -> None:
        """Wait for a scenario's end and raise what it raised."""
        before_it = len(self._outcomes)
        self._outcomes[body].result(timeout=SCENARIO_TIMEOUT_S * before_it)
