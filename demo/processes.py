# SPDX-License-Identifier: Apache-2.0
"""Child processes, each in its own session, so that a session's processes can be stopped together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from demo.guardian import Guardian, session_pids

_GUARDIAN = Guardian()
_KILLED_WITHIN_S = 10


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def useful_end(text: str, *, lines: int = 30, width: int = 400) -> str:
    """Return the last traceback and the lines after it, or the last lines if there is no traceback near the end."""
    kept = [line.rstrip()[:width] for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    near_end = kept[-4 * lines :]
    starts = [number for number, line in enumerate(near_end) if "Traceback (most recent call last)" in line]
    if starts and len(near_end) - starts[-1] > lines:
        tail = near_end[starts[-1] :]
        return "\n".join([tail[0], "  ...", *tail[-lines:]])
    return "\n".join(near_end[starts[-1] :] if starts else near_end[-lines:])


class OwnProcess:
    """A process with its descendants, in its own session, with its output in a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        cwd: Path | None = None,
        user: int | None = None,
        group: int | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=[] if user is not None else None,
            )
        self._started = psutil.Process(self._popen.pid).create_time()
        _GUARDIAN.watch(self._popen.pid, self._started)

    @property
    def pid(self) -> int:
        """The id of the first process, which is also the id of the session."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code of the first process: None while it runs, negative if a signal ended it."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        """Whether the first process runs."""
        return self.exit_code is None

    def log_end(self) -> str:
        """Return the end of the output."""
        with suppress(OSError):
            return useful_end(self.log_path.read_text(errors="replace")[-200_000:])
        return ""

    def pids(self) -> list[int]:
        """Return the ids of the running processes of the session.

        Airflow starts each task in its own process *group*, within the session.
        """
        return session_pids(self.pid, leader_started=self._started)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the session."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        """Freeze the whole session (SIGSTOP)."""
        self.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a frozen session (SIGCONT)."""
        self.signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the whole session (SIGKILL)."""
        self.signal_all(signal.SIGKILL)
        self.wait(timeout_s=_KILLED_WITHIN_S)

    def terminate(self, *, grace_s: float = 20) -> None:
        """Send SIGTERM to the first process, then kill the processes that are left after the grace period."""
        stop_all([self], grace_s=grace_s)

    def wait(self, *, timeout_s: float) -> bool:
        """Wait for the end of the whole session; return whether it ended in time."""
        deadline = time.monotonic() + timeout_s
        while self.alive or self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def stop_all(processes: Iterable[OwnProcess], *, grace_s: float) -> None:
    """Send SIGTERM to the first process of each session, then SIGKILL to the processes that are left.

    Airflow's parent processes end their children. A LocalExecutor whose idle workers receive the signal too would
    wait for them forever.

    :param grace_s: the grace period of all of them together, in seconds.
    """
    remaining = [process for process in processes if process.alive or process.pids()]
    for process in remaining:
        # A stopped process receives SIGTERM only after SIGCONT.
        process.resume()
        if process.alive:
            os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (remaining := [p for p in remaining if p.alive or p.pids()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in remaining:
        process.signal_all(signal.SIGKILL)
    for process in remaining:
        process.wait(timeout_s=_KILLED_WITHIN_S)
