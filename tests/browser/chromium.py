# SPDX-License-Identifier: Apache-2.0
"""A Chromium for the tests: the system's own, or installed from its packages if possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


def chromium() -> str:
    """Return the path of a Chromium; skip the tests if there is none and none can be installed."""
    if found := _found():
        return found
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip("no Chromium here, and no right to install it: apt-get install chromium")
    for command in ([apt, "update"], [apt, "install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        # A failed installation must be seen: skipped tests would look like passed ones.
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-2000:]}"
    return _found() or pytest.fail("chromium was installed, and is not on the path")


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def free_of_proxies(folder: Path) -> dict[str, str]:
    """Return the environment of the browser, without the user's profile and proxies."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
