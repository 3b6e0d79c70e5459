# SPDX-License-Identifier: Apache-2.0
"""The tab "Videos" on the page of a Dag run.

Airflow imports this in every process that reads plugins, so it has only the tab's name and address. The API server
imports the pages (``airflow_provider_wan.gallery.app``) when one is opened.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.configuration import conf
from airflow.providers.common.compat.sdk import AirflowPlugin

URL_PREFIX = "/wan"


async def gallery_app(scope: Any, receive: Any, send: Any) -> None:
    """Pass a request on to the pages, which the first request imports."""
    from airflow_provider_wan.gallery.app import app

    await app(scope, receive, send)


def gallery_tab() -> dict[str, Any]:
    """Return the tab as Airflow takes it: an external view."""
    view: dict[str, Any] = {
        "name": "Videos",
        # Without a leading slash: relative to wherever Airflow is served from.
        "href": f"{URL_PREFIX.lstrip('/')}/dags/{{DAG_ID}}/videos?run_id={{RUN_ID}}",
        "destination": "dag_run",
        "url_route": "wan-videos",
    }
    tags = {tag.strip() for tag in conf.get("wan", "gallery_tags", fallback="").split(",")} - {""}
    if tags:  # for Airflow 3.4 and later, which know the tags of a run's Dag and not its operators
        view["applies_to"] = {"dag.tags.name": sorted(tags)}
    return view


class WanGalleryPlugin(AirflowPlugin):
    """Adds the tab; ``[wan] gallery = False`` removes it."""

    name = "wan_gallery"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = []
    external_views: ClassVar[list[dict[str, Any]]] = []
    if conf.getboolean("wan", "gallery", fallback=True):
        fastapi_apps.append({"app": gallery_app, "url_prefix": URL_PREFIX, "name": "Wan videos"})
        external_views.append(gallery_tab())
