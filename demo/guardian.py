# SPDX-License-Identifier: Apache-2.0
"""Ends the sessions of a parent that was killed before it could end them.

The parent writes ``+<session> <start time of its leader>`` for each process that it starts. When its end of the
pipe closes, for whatever reason, the sessions that still live are killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil


def session_pids(session: int, *, leader_started: float) -> list[int]:
    """Return the running processes of a session; none if its id has been reused.

    While any member lives, the kernel does not give the number out again: a leader that was started at another
    time means that ours are all gone.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) != session:
                continue
            if process.pid == session and process.create_time() != leader_started:
                return []
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


class Guardian:
    """The parent's side: one guardian process, started with the first session."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None

    def watch(self, session: int, leader_started: float) -> None:
        """Register a session to be killed after this process has ended."""
        if self._popen is None or self._popen.poll() is not None:
            self._popen = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, start_new_session=True
            )
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"+{session} {leader_started!r}\n".encode())
        self._popen.stdin.flush()


def guard() -> None:
    """The guardian's side: wait until the parent has ended."""
    # The parent handles Ctrl-C and SIGTERM, and cleans up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watched = [line[1:].split() for line in sys.stdin]
    for session, leader_started in watched:
        for pid in session_pids(int(session), leader_started=float(leader_started)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    guard()
