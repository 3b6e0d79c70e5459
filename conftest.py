# SPDX-License-Identifier: Apache-2.0
"""Isolates every test, those of the provider and of the sandbox: a clean environment, and loopback only.

This runs before the conftest.py of a directory, and so before anything imports Airflow.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any

_PREFIXES = ("AIRFLOW", "_AIRFLOW", "GOOGLE_", "GCLOUD_", "STORAGE_EMULATOR_HOST", "WAN_", "NETRC")


def _clean_environment() -> None:
    """Remove environment variables that could change a test: Airflow settings, credentials, proxies."""
    for name in list(os.environ):
        keep = name == "WAN_TESTS_BASE" and "PYTEST_XDIST_WORKER" in os.environ  # of tests/conftest.py
        if not keep and (name.startswith(_PREFIXES) or name.lower().endswith("_proxy")):
            del os.environ[name]
    # Tests start hundreds of processes that import Airflow: each would compile thousands of modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def _only_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect":
        return
    opened, address = arguments
    if opened.family not in (socket.AF_INET, socket.AF_INET6) or opened.type != socket.SOCK_STREAM:
        return
    host = str(address[0])
    if not host.startswith("127.") and host not in ("::1", "localhost", "::ffff:127.0.0.1"):
        raise OSError(errno.ENETUNREACH, f"tests talk to loopback only, not to {host}")


_clean_environment()
sys.addaudithook(_only_loopback)
