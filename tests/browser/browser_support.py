# SPDX-License-Identifier: Apache-2.0
"""Runs, pages and profiles for the browser tests."""

from __future__ import annotations

import json
import sys
import uuid
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, FrameLocator, Page, expect

from airflow_provider_wan.gallery.run_cards import Entry, RunTask
from demo.daily_content import PROMPTS
from demo.gallery import PHOTOS
from tests.gallery.airflow_server import AirflowServer, write_run

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "docs" / "_static"
DAGS = Path(__file__).parent / "dags"
DAG_ID, BATCH_DAG_ID = "photos_one_by_one", "photos_in_a_batch"
BATCH_SIZE = 30
GOOD = ("astronaut.jpg", "coffee.jpg", "hubble_deep_field.jpg")
MODEL = "wan-ai/wan-2-2/image-to-video"
OTHER_MODEL = "wan-ai/wan-3.0/image-to-video"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & a slow pan"
#: The longest that any condition may take, on a busy machine too.
PATIENCE_MS = 240_000

expect.set_options(timeout=PATIENCE_MS)


class Site:
    """An Airflow with runs of two Dags, and the sandbox behind it.

    :param url: of Airflow.
    """

    def __init__(self, airflow: AirflowServer, url: str, sandbox: Sandbox) -> None:
        self.airflow = airflow
        self.url = url
        self.sandbox = sandbox
        self.run_id = self.batch_run_id = ""
        self.photos = self._publish_photos()

    def _publish_photos(self) -> dict[str, str]:
        from airflow_provider_wan.hooks.gcs import storage_client

        bucket = storage_client().bucket("photos")
        for name in PROMPTS:
            bucket.blob(name).upload_from_filename(str(PHOTOS / name))
        return {name: f"{self.sandbox.bucket_url}/photos/{name}" for name in PROMPTS}

    def run_dags(self) -> None:
        """Run both Dags to their end: three videos land, one generation fails, two photographs are refused."""
        fault = {"prompt_contains": "rocket", "error": "the picture shows too much"}
        self.sandbox.add_fault("generation", "fail", **fault)
        images = [
            {"img_url": url, "prompt": PROMPTS[name], "object_name": f"{Path(name).stem}.mp4"}
            for name, url in self.photos.items()
        ]
        bundle = {
            "name": "browser",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(DAGS)},
        }
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
            dags = _import_dags()
            self.run_id = str(dags[DAG_ID].test(run_conf={"images": images}).run_id)
            self.batch_run_id = str(dags[BATCH_DAG_ID].test(run_conf={"rows": self.batch_rows()}).run_id)

    def batch_rows(self) -> list[dict[str, Any]]:
        """Return a batch of photographs, of which two cannot be used and three fail."""
        rows: list[dict[str, Any]] = [
            {"image": self.photos[GOOD[number % 3]], "prompt": f"Take {number}: nearer", "seed": number}
            for number in range(BATCH_SIZE)
        ]
        rows[1]["image"], rows[4]["image"] = self.photos["chelsea.jpg"], self.photos["horse_rgba.png"]
        for number in (2, 10, 20):
            rows[number]["prompt"] = f"Take {number}: a rocket starts"
        return rows

    def submit(self, prompt: str, count: int) -> list[Entry]:
        """Submit requests that queue, and return the XComs of the tasks that did."""
        from airflow_provider_wan.hooks.wan import WanHook

        entries = []
        for number, name in enumerate(GOOD[:count]):
            url = self.photos[name]
            inputs = {"prompt": prompt, "img_url": url, "seed": number}
            request = WanHook().submit(MODEL, inputs)
            value = {
                "request_id": request.request_id,
                "fingerprint": name,
                "model_id": MODEL,
                "inputs": inputs,
            }
            entries.append(Entry("make_video.submit", number, "return_value", value))
        return entries

    def start_batch(self) -> str:
        """Run a batch until it waits, and return the run in which its task is deferred."""
        from airflow.providers.common.compat.sdk import TaskDeferred

        from airflow_provider_wan.links.wan import GENERATIONS_URL
        from airflow_provider_wan.operators.wan_batch import WanBatchOperator
        from tests.batch_runs import TaskInstance

        ti, run_id = TaskInstance(), f"manual__{uuid.uuid4()}"
        ti.dag_id, ti.run_id, ti.task_id = BATCH_DAG_ID, run_id, "make_videos"
        batch = WanBatchOperator(
            task_id="make_videos",
            images=self.batch_rows(),
            bucket_name="videos",
            object_name=f"{run_id}/",
            max_in_flight=20,
            resume_when_ready=20,
            max_failures="50%",
        )
        with pytest.raises(TaskDeferred):
            batch.execute({"ti": ti, "outlet_events": {}})
        entries = [Entry("make_videos", -1, key, value) for key, value in ti.xcoms.items()]
        entries += [Entry("make_videos", -1, "_link_WanGenerationsLink", GENERATIONS_URL)]
        write_run(run_id, entries, [RunTask("make_videos", -1, "deferred", "WanBatchOperator")], dag_id=BATCH_DAG_ID)
        return run_id

    def _landed_xcoms(self) -> list[list[Entry]]:
        """Return the XComs of each landed video: of the tasks that submitted it and landed it."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        found: dict[int, list[Entry]] = {}
        query = select(XComModel.task_id, XComModel.map_index, XComModel.value).where(
            XComModel.run_id == self.run_id, XComModel.key == "return_value"
        )
        with create_session() as session:
            for task_id, map_index, value in session.execute(query):
                plain = json.loads(value) if isinstance(value, str) else value
                found.setdefault(map_index, []).append(Entry(task_id, map_index, "return_value", plain))
        return [entries for _, entries in sorted(found.items()) if len(entries) == 2]

    def write_crowd(self, count: int) -> str:
        """Write a run with so many copies of one landed video, and return its id."""
        one = self._landed_xcoms()[0]
        run_id = f"crowd_{count}"
        entries = [_copy(entry, number) for number in range(count) for entry in one]
        write_run(run_id, entries, state="success", dag_id=DAG_ID)
        return run_id

    def write_takes(self) -> str:
        """Write a run with each landed video twice, the second time of another model, and return its id."""
        entries = []
        for number, takes in enumerate(self._landed_xcoms()):
            for entry in takes:
                other = _copy(entry, 100 + number)
                if isinstance(other.value, dict):
                    other.value["model_id"] = OTHER_MODEL
                else:
                    del other.value[0]["facts"]["poster"]  # the object beside the video is of the first request
                entries += [entry, other]
        write_run("takes", entries, state="success", dag_id=DAG_ID)
        return "takes"

    def api(self, run_id: str, dag_id: str = DAG_ID) -> str:
        """Return the address of a run in Airflow's API."""
        return f"{self.url}/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"

    def run_page(self, run_id: str, dag_id: str = DAG_ID) -> str:
        """Return the address of a run's page."""
        return f"{self.url}/dags/{dag_id}/runs/{quote(run_id, safe='')}"


def _copy(entry: Entry, number: int) -> Entry:
    """Return the XCom of another map index about another request."""
    text = json.dumps(entry.value)
    request_id = (entry.value[0] if isinstance(entry.value, list) else entry.value)["request_id"]
    value = json.loads(text.replace(request_id, f"00000000-0000-4000-8000-{number:012d}"))
    return Entry(entry.task_id, number, entry.key, value)


def _import_dags() -> dict[str, Any]:
    """Import the Dags as Airflow does."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    spec = spec_from_file_location("browser_dags", DAGS / "browser_dags.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["browser_dags"] = module_from_spec(spec)
    DagContext.current_autoregister_module_name = "browser_dags"
    try:
        spec.loader.exec_module(module)
    finally:
        DagContext.current_autoregister_module_name = None
    return {dag.dag_id: dag for dag, found_in in DagContext.autoregistered_dags if found_in is module}


class Windows:
    """Pages of one browser, in a profile for each role.

    :param browser: the browser.
    """

    def __init__(self, browser: Browser, site: Site) -> None:
        self._browser = browser
        self._site = site
        self._profiles: dict[str, BrowserContext] = {}
        self._pages: list[Page] = []

    def __call__(self, role: str = "ADMIN", *, width: int = 1360, height: int = 900) -> Page:
        """Return a new page of a user who is logged in."""
        if role not in self._profiles:
            profile = self._profiles[role] = self._browser.new_context()
            token = self._site.airflow.token(role)
            profile.add_cookies([{"name": "_token", "value": token, "url": self._site.url}])
            profile.set_default_timeout(PATIENCE_MS)
        page = self._profiles[role].new_page()
        self._pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        return page

    def tab(self, run_id: str, dag_id: str = DAG_ID, page: Page | None = None) -> FrameLocator:
        """Open a run's page, click on the tab as a person does, and return its frame."""
        page = page or self()
        page.goto(self._site.run_page(run_id, dag_id))
        page.get_by_role("link", name="Videos", exact=True).or_(page.get_by_text("Videos", exact=True)).first.click()
        frame = page.frame_locator("iframe")
        expect(frame.locator("h1")).to_have_text("Videos")
        return frame

    def gallery(self, run_id: str, dag_id: str = DAG_ID, page: Page | None = None) -> Page:
        """Open what the tab shows, without Airflow's page around it, which takes seconds to load."""
        page = page or self()
        page.goto(self.address(run_id, dag_id))
        return page

    def address(self, run_id: str, dag_id: str = DAG_ID) -> str:
        """Return the address of what the tab shows."""
        return f"{self._site.url}/wan/dags/{dag_id}/videos?run_id={quote(run_id, safe='')}"

    def close_pages(self) -> None:
        """Close what a test has opened."""
        for page in self._pages:
            page.close()
        self._pages.clear()
