# SPDX-License-Identifier: Apache-2.0
"""The provider info that Airflow discovers.

Every ``airflow`` command imports this module, so it imports nothing itself.
"""

from __future__ import annotations

from typing import Any

_INTEGRATION = "Wan (RunComfy)"
#: Pages of the documentation that start from a task.
_HOW_TO = ("submit", "wait", "land", "batch", "check-videos", "cancel", "table", "gallery", "production")

#: The fields of a connection's extra, with the form of each.
CONN_FIELDS: dict[str, dict[str, Any]] = {
    "requests_per_second": {
        "label": "Requests per second",
        "description": "Upper bound for calls to the API, shared by all that one process sends. Empty: no bound.",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "How long one call to the API may take.",
        "schema": {"type": ["number", "null"], "default": 60, "exclusiveMinimum": 0},
    },
    "not_found_patience": {
        "label": "Patience with an unknown request (seconds)",
        "description": "How long the API has to keep saying that it does not know a request before that is believed.",
        "schema": {"type": ["number", "null"], "default": 60, "exclusiveMinimum": 0},
    },
    "download_hosts": {
        "label": "Download hosts",
        "description": "Hosts that videos may come from, comma separated: host patterns such as "
        "*.example.com, or whole origins such as http://127.0.0.1:8787. Replaces the built-in list "
        "(*.runcomfy.net, *.runcomfy.com).",
        "schema": {"type": ["string", "null"]},
    },
    "allow_private_images": {
        "label": "Allow images from private addresses",
        "description": "Read source images from private, loopback and link-local addresses too. "
        "For the sandbox and for image servers inside your network.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
    "account_host": {
        "label": "Account API",
        "description": "Origin of the account API, which knows the balance. Empty: https://api.runcomfy.net",
        "schema": {"type": ["string", "null"]},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Describe this provider to Airflow: its package, its connection type, and that type's form.

    ``package-name`` must equal the name of the distribution, or Airflow's whole discovery fails, for
    every provider that is installed.

    :return: a mapping by Airflow's ``provider_info.schema.json``; ``conn-fields`` and
        ``ui-field-behaviour`` are read by Airflow 3.2 and later.
    """
    return {
        "package-name": "airflow-provider-wan",
        "name": _INTEGRATION,
        "description": "Turns images into videos with RunComfy's Model API (Wan 2.2 image-to-video by "
        "default) and lands them in Google Cloud Storage.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.runcomfy.com/",
                "how-to-guide": [f"/docs/howto/{page}.md" for page in _HOW_TO],
                "tags": ["service", "generative-ai"],
            },
            {
                "integration-name": "Google Cloud Storage (GCS)",
                "external-doc-url": "https://cloud.google.com/storage/",
                "tags": ["gcp"],
            },
        ],
        "hooks": _modules("airflow_provider_wan.hooks.wan"),
        "operators": _modules(
            "airflow_provider_wan.operators.wan",
            "airflow_provider_wan.operators.wan_batch",
            "airflow_provider_wan.operators.wan_cancel",
            "airflow_provider_wan.operators.wan_contact_sheet",
            "airflow_provider_wan.operators.wan_export",
            "airflow_provider_wan.operators.wan_images",
        ),
        "sensors": _modules("airflow_provider_wan.sensors.wan"),
        "triggers": _modules("airflow_provider_wan.triggers.wan", "airflow_provider_wan.triggers.wan_batch"),
        "transfers": [
            {
                "source-integration-name": _INTEGRATION,
                "target-integration-name": "Google Cloud Storage (GCS)",
                "python-module": "airflow_provider_wan.transfers.wan_to_gcs",
            },
        ],
        "extra-links": [
            "airflow_provider_wan.links.wan.WanVideoLink",
            "airflow_provider_wan.links.wan.WanBucketLink",
            "airflow_provider_wan.links.wan.WanGenerationsLink",
        ],
        "task-decorators": [
            {"name": "wan", "class-name": "airflow_provider_wan.decorators.wan.wan_task"},
            {"name": "wan_batch", "class-name": "airflow_provider_wan.decorators.wan.wan_batch_task"},
        ],
        # Read by Airflow 3.3 and later; python -m airflow_provider_wan runs the same commands elsewhere.
        "cli": ["airflow_provider_wan.cli.get_wan_cli_commands"],
        "config": {
            "wan": {
                "description": "The Wan (RunComfy) provider.",
                "options": {
                    "gallery": {
                        "description": "Whether the page of a Dag run has the tab Videos.",
                        "version_added": None,
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    },
                    "gallery_tags": {
                        "description": "Tags of Dags, separated by commas. From Airflow 3.4 on, only Dags with one of "
                        "them have the tab; by default all have it.",
                        "version_added": None,
                        "type": "string",
                        "example": "videos, marketing",
                        "default": "",
                    },
                },
            },
        },
        "connection-types": [
            {
                "connection-type": "wan",
                "hook-class-name": "airflow_provider_wan.hooks.wan.WanHook",
                "hook-name": "Wan (RunComfy)",
                "conn-fields": CONN_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "port"],
                    "relabeling": {"password": "API token", "host": "API origin"},
                    "placeholders": {
                        "password": "a token from your RunComfy profile page",
                        "host": "https://model-api.runcomfy.net",
                    },
                },
            },
        ],
    }


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": list(names)}]
