# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a program: it starts, prints its addresses, and stops without leaving anything behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from sandbox.tests.api_client import eventually
from wan_sandbox import cli
from wan_sandbox.server import Sandbox

COMMAND = [sys.executable, "-m", "wan_sandbox"]


@contextmanager
def program(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the sandbox, and stop it whatever happens."""
    command = [*COMMAND, *options]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_program_prints_its_addresses_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "state.json"
    options = ["--port", "0", "--bucket-port", "0", "--state-file", str(file), "--bucket", "mine"]
    with program(*options, "--fault", "balance:status:status=500") as running:
        eventually(lambda: file.exists() or running.poll() is not None)
        state = json.loads(file.read_text())
        with urlopen(f"{state['url']}/_sandbox/health") as answer:
            assert json.load(answer)["ok"] is True
        with urlopen(f"{state['bucket_url']}/storage/v1/b/mine") as answer:
            assert json.load(answer)["name"] == "mine"
        with urlopen(f"{state['url']}/_sandbox/faults") as answer:
            assert json.load(answer)["faults"][0]["params"] == {"status": 500}
        running.send_signal(number)
        out, err = running.communicate(timeout=20)
        assert (running.returncode, err) == (0, "")
    assert state["pid"] == running.pid
    connection = json.loads(state["env"]["AIRFLOW_CONN_WAN_DEFAULT"])
    assert (connection["conn_type"], connection["host"], connection["password"]) == (
        "wan",
        state["url"],
        "sandbox-token",
    )
    for name in ("AIRFLOW_CONN_WAN_DEFAULT", "STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        assert f"export {name}=" in out


def test_printed_variables_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    env = {"AIRFLOW_CONN_WAN_DEFAULT": json.dumps({"password": "it's"})}
    text = cli.welcome(cli.Settings(), "http://a", "http://b", env)
    [export] = [line for line in text.splitlines() if line.startswith("export")]
    shown = subprocess.run(
        ["sh", "-c", f'{export}; printf %s "$AIRFLOW_CONN_WAN_DEFAULT"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == env["AIRFLOW_CONN_WAN_DEFAULT"]


def test_taken_port_is_reported_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "--port", str(port), "--bucket-port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--speed", "0"], 2, "speed must be more than 0"),
        (["--fault", "status"], 2, "call:fault"),
        (["--fault", "status:boom"], 1, "unknown fault"),
        (["--video-bytes", "10"], 1, "video-bytes must be"),
    ],
)
def test_invalid_options_are_reported(
    capsys: pytest.CaptureFixture[str], options: list[str], code: int, says: str
) -> None:
    try:
        result = cli.main(["--port", "0", "--bucket-port", "0", *options])
    except SystemExit as end:
        result = int(str(end.code))
    assert result == code
    assert says in capsys.readouterr().err


def test_missing_pyav_error_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'av' else find(name, *more)\n"
        "from wan_sandbox.cli import main; sys.exit(main(['--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "airflow-provider-wan[sandbox]"' in done.stderr


def test_sandbox_env_points_every_client_at_it() -> None:
    with Sandbox(token="mine", check_images=False) as sandbox:
        env = sandbox.env()
        assert env["STORAGE_EMULATOR_HOST"] == sandbox.bucket_url
        extra = json.loads(env["AIRFLOW_CONN_WAN_DEFAULT"])["extra"]
        assert extra == {
            "account_host": sandbox.url,
            "download_hosts": [sandbox.url],
            "allow_private_images": True,
        }
        url = sandbox.url
    with pytest.raises(OSError, match="refused"):
        urlopen(url)


def test_loopback_bypasses_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example.com")
    with Sandbox(check_images=False) as sandbox:
        assert sandbox.env()["NO_PROXY"] == "intern.example.com,127.0.0.1,localhost"


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Sandbox(concurrency=0)
    with pytest.raises(TypeError):
        Sandbox(no_such_setting=1)
