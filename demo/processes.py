# SPDX-License-Identifier: Apache-2.0
"""Processes of our own: each in a session of its own, so that exactly what was started can be stopped."""

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
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def useful_end(text: str, *, lines: int = 30, width: int = 400) -> str:
    """The last traceback and what follows it, if there is one near the end; else the last lines."""
    kept = [
        line.rstrip()[:width] for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()
    ]
    near_end = kept[-4 * lines :]
    starts = [number for number, line in enumerate(near_end) if "Traceback (most recent call last)" in line]
    if starts and len(near_end) - starts[-1] > lines:
        tail = near_end[starts[-1] :]
        return "\n".join([tail[0], "  ...", *tail[-lines:]])
    return "\n".join(near_end[starts[-1] :] if starts else near_end[-lines:])


class OwnProcess:
    """One process with its descendants, in a session of its own, its output in a file."""

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
        """Process id of the first process, which is the id of the session too."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while the first process lives; negative when a signal ended it."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        """Whether the first process lives."""
        return self.exit_code is None

    def log_end(self) -> str:
        """The useful end of its output."""
        with suppress(OSError):
            return useful_end(self.log_path.read_text(errors="replace")[-200_000:])
        return ""

    def pids(self) -> list[int]:
        """Every living process of the session.

        Airflow gives each task a process *group* of its own, but nothing in it leaves the session.
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
        """End the whole session without a chance to clean up (SIGKILL)."""
        self.signal_all(signal.SIGKILL)
        self.wait(timeout_s=_KILLED_WITHIN_S)

    def terminate(self, *, grace_s: float = 20) -> None:
        """Ask the first process to end politely (SIGTERM), then kill what is left after the grace."""
        stop_all([self], grace_s=grace_s)

    def wait(self, *, timeout_s: float) -> bool:
        """Whether the whole session ended within the time."""
        deadline = time.monotonic() + timeout_s
        while self.alive or self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def stop_all(processes: Iterable[OwnProcess], *, grace_s: float) -> None:
    """End these processes: SIGTERM to the first of each session, SIGKILL to all that is left after the grace.

    Airflow's parents end their children themselves; a LocalExecutor whose idle workers get the signal too
    waits for them for ever.

    :param grace_s: seconds that all of them together get to end by themselves.
    """
    remaining = [process for process in processes if process.alive or process.pids()]
    for process in remaining:
        # A frozen process sees SIGTERM only when it runs again.
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
