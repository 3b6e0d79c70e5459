# SPDX-License-Identifier: Apache-2.0
"""The sandbox's own time, which can run faster than the real one and change its speed at any moment."""

from __future__ import annotations

import time


class Clock:
    """Seconds of sandbox time since the start.

    :param speed: sandbox seconds a real second.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._real = time.monotonic()
        self._at_real = 0.0

    def now(self) -> float:
        """Return the sandbox time in seconds."""
        return self._at_real + (time.monotonic() - self._real) * self.speed

    def set_speed(self, speed: float) -> None:
        """Go on with another speed from here."""
        self._at_real = self.now()
        self._real = time.monotonic()
        self.speed = speed

    def wall_time(self, moment: float) -> float:
        """Return the real time (seconds since 1970) of a moment of sandbox time, at the current speed."""
        return time.time() - (self.now() - moment) / self.speed
