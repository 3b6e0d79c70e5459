# SPDX-License-Identifier: Apache-2.0
"""Every setting of the local Airflow, with its reason."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PASSWORDS_FILE = "passwords.json"
_LOCAL_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class AirflowSettings:
    """The parameters of a local Airflow; see :class:`LocalAirflow`."""

    home: Path
    dags_folders: Sequence[Path]
    database: str
    port: int
    health_threshold_s: int | None
    parallelism: int
    users: Mapping[str, str] | None = None

    def environment(self, *, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of all components: the caller's, without its Airflow settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        # Tasks call the API server with httpx, which would send loopback calls to a proxy from the environment.
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "PYTHONUNBUFFERED": "1",
            **_as_variables(self._base()),
            **_as_variables(self._short_intervals()),
            **(_as_variables(self._fast_detection(self.health_threshold_s)) if self.health_threshold_s else {}),
            **extra,
        }

    def _base(self) -> dict[str, dict[str, object]]:
        bundles = [
            {"name": f"{number}-{folder.name}", "classpath": _LOCAL_BUNDLE, "kwargs": {"path": str(folder)}}
            for number, folder in enumerate(self.dags_folders)
        ]
        url = f"http://127.0.0.1:{self.port}"
        return {
            "core": {
                "executor": "LocalExecutor",
                "load_examples": False,
                "dags_folder": self.dags_folders[0],
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "parallelism": self.parallelism,
                "execution_api_server_url": f"{url}/execution/",
                **self._login(),
                # The default resolves a fully qualified name, which takes seconds on a machine without one.
                "hostname_callable": "socket.gethostname",
                "dags_are_paused_at_creation": True,
                "max_active_tasks_per_dag": 64,
            },
            "database": {"sql_alchemy_conn": self.database},
            "api": {
                "host": "127.0.0.1",
                "port": self.port,
                "base_url": url,
                "workers": 1,
                "secret_key": secrets.token_hex(32),
            },
            "api_auth": {"jwt_secret": secrets.token_hex(32)},
            "logging": {"base_log_folder": self.home / "logs", "colored_console_log": False},
            "dag_processor": {
                "dag_bundle_config_list": json.dumps(bundles),
                "dag_bundle_storage_path": self.home / "bundles",
            },
            # Only the demo and the tests start runs: an unpaused daily Dag must not be scheduled.
            "scheduler": {"use_job_schedule": False},
            "usage_data_collection": {"enabled": False},
        }

    def _login(self) -> dict[str, object]:
        """Return the login settings: every visitor is an admin, or the given users."""
        if not self.users:
            return {"simple_auth_manager_all_admins": True}
        return {
            "simple_auth_manager_all_admins": False,
            "simple_auth_manager_users": ",".join(f"{name}:{role}" for name, role in self.users.items()),
            "simple_auth_manager_passwords_file": self.home / PASSWORDS_FILE,
        }

    def _short_intervals(self) -> dict[str, dict[str, object]]:
        """Return shorter intervals than Airflow's defaults, which suit long-running clusters."""
        return {
            "scheduler": {
                "scheduler_idle_sleep_time": 0.2,
                "scheduler_heartbeat_sec": 2,
                "trigger_timeout_check_interval": 1,
                "orphaned_tasks_check_interval": 5,
            },
            "dag_processor": {
                "refresh_interval": 5,
                "bundle_refresh_check_interval": 1,
                # The files do not change, and parsing them again would take a core from the tasks.
                "min_file_process_interval": 600,
                "stale_dag_threshold": 1200,
                "print_stats_interval": 0,
                "dag_version_inflation_check_level": "off",
            },
            "workers": {
                "min_heartbeat_interval": 1,
                "missing_dag_retry_delay": 1,
                # The first call builds the API, which takes more than the default of 5 s on a busy machine.
                "execution_api_timeout": 60,
            },
            "triggerer": {"job_heartbeat_sec": 1},
        }

    def _fast_detection(self, threshold_s: int) -> dict[str, dict[str, object]]:
        """Return settings that detect a dead triggerer or task within seconds, also on a busy machine."""
        return {
            "scheduler": {
                # Not the scheduler: one that gets no CPU would count as dead and restart its tasks again and again.
                "scheduler_health_check_threshold": 300,
                "task_instance_heartbeat_timeout": max(3 * threshold_s, 10),
                "task_instance_heartbeat_timeout_detection_interval": 1,
            },
            "triggerer": {
                "triggerer_health_check_threshold": threshold_s,
                "runner_health_check_threshold": threshold_s,
            },
        }


def _as_variables(sections: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    return {
        f"AIRFLOW__{section.upper()}__{option.upper()}": str(value)
        for section, options in sections.items()
        for option, value in options.items()
    }
