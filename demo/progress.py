# SPDX-License-Identifier: Apache-2.0
"""Prints a line for each change of state."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

_WORDS = {
    "queued": "queued",
    "running": "being made",
    "succeeded": "made, not landed yet",
    "failed": "failed at RunComfy",
    "cancelled": "cancelled",
}


class Progress:
    """Prints lines that begin with the seconds since the start.

    On a terminal the time of the wait ticks on the last line, which the next change overwrites.

    :param names: of the things that will be shown, for their width.
    """

    def __init__(self, *, names: Iterable[str]) -> None:
        self._width = max(map(len, names), default=0)
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._shown: dict[str, str] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Print a line."""
        clear = "\r\x1b[K" if self._live else ""
        print(f"{clear}{self.elapsed_s:6.1f} s  {text}", flush=True)

    def tick(self, waiting_for: str) -> None:
        """On a terminal, update the line that shows the time."""
        if self._live:
            print(f"\r\x1b[K{self.elapsed_s:6.1f} s  {waiting_for}", end="", flush=True)

    def show(self, states: dict[str, str]) -> None:
        """Print a line for each item whose state has changed since it was last printed."""
        for name, state in states.items():
            if self._shown.get(name) != state:
                self._shown[name] = state
                self.say(f"{name:<{self._width}}  {state}")


def request_states(purchases: list[dict[str, Any]], names_by_url: dict[str, str]) -> dict[str, str]:
    """Return the state of each image's request by the sandbox's ledger, with its queue position."""
    states = {}
    queued = 0
    for purchase in sorted(purchases, key=lambda purchase: purchase["at"]):
        state = _WORDS.get(purchase["state"], purchase["state"])
        if purchase["state"] == "queued":
            queued += 1
            state = f"queued, position {queued}"
        states[names_by_url.get(purchase["img_url"], purchase["img_url"])] = state
    return states
