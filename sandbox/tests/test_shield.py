# SPDX-License-Identifier: Apache-2.0
"""The tests of the sandbox run isolated like those of the provider: no network, no settings of the machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_no_test_can_leave_this_machine() -> None:
    with pytest.raises(OSError, match="loopback only"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_sandbox_tests_run_without_airflow_and_without_the_shell_s_settings(tmp_path: Path) -> None:
    test = tmp_path / "probe.py"
    test.write_text("import sys\nsys.modules['airflow'] = sys.modules['airflow_provider_wan'] = None\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "probe", "-p", "no:cacheprovider"]
    command += ["sandbox/tests/test_sandbox_queue.py"]
    dirt = {"HTTP_PROXY": "http://127.0.0.1:1", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"}
    env = {**os.environ, **dirt, "PYTHONPATH": str(tmp_path)}
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
