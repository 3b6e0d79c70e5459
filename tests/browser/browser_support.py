# SPDX-License-Identifier: Apache-2.0
"""What the browser tests look at, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import APIRequestContext, Browser, BrowserContext, Page

from demo.daily_content import PROMPTS
from demo.gallery import VIDEOS_BUCKET
from demo.local_airflow import LocalAirflow
from demo.sandbox_process import SandboxProcess

ROOT = Path(__file__).resolve().parents[2]
DAG_ID = "wan_daily_content"
BATCH_DAG_ID = "photos_in_a_batch"
BATCH_SIZE = 30
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & a slow pan"
USERS = {"ada": "admin", "victor": "viewer", "nobody": ""}
STATIC = ROOT / "docs" / "_static"


@dataclass(frozen=True, slots=True)
class LinkState:
    """What a test looks at: an Airflow, the sandbox behind it, and a run of the daily Dag."""

    airflow: LocalAirflow
    sandbox: SandboxProcess
    photos: dict[str, str]
    run_id: str
    database: str

    @property
    def quoted_run_id(self) -> str:
        """The id of the run as an address has it."""
        return quote(self.run_id, safe="")

    def start(self, day: str, names: list[str], prompt: str | None = None) -> str:
        """Start the run of a day over some photographs and give its id.

        :param prompt: for all; None: each its own.
        """
        images = [{"img_url": self.photos[name], "prompt": prompt or PROMPTS[name]} for name in names]
        conf = {"bucket": VIDEOS_BUCKET, "images": images}
        return self.airflow.client.trigger(DAG_ID, conf, logical_date=f"{day}T00:00:00+00:00")

    def start_batch(self) -> str:
        """Start a batch of photographs, of which two can't be used and three fail, and give the id of its run."""
        good = ["astronaut.jpg", "coffee.jpg", "hubble_deep_field.jpg"]
        rows = [
            {"image": self.photos[good[number % 3]], "prompt": f"Take {number}: nearer", "seed": number}
            for number in range(BATCH_SIZE)
        ]
        rows[1]["image"], rows[4]["image"] = self.photos["chelsea.jpg"], self.photos["horse_rgba.png"]
        for number in (2, 10, 20):
            rows[number]["prompt"] = f"Take {number}: a rocket starts"
        return self.airflow.client.trigger(BATCH_DAG_ID, {"rows": rows, "bucket": VIDEOS_BUCKET})

    def tab(self, run_id: str | None = None, dag_id: str = DAG_ID) -> str:
        """Address of the tab of a run, as a click on it shows."""
        run = quote(run_id or self.run_id, safe="")
        return f"{self.airflow.url}/dags/{dag_id}/runs/{run}/plugin/wan-videos"

    def landed_objects(self) -> list[str]:
        """Names of the videos in the bucket."""
        found = self.sandbox.bucket_control(f"objects?bucket={VIDEOS_BUCKET}&prefix=2026/01/15/")["objects"]
        return [item["name"] for item in found if item["name"].endswith(".mp4")]


class Windows:
    """Pages of one browser, in a profile for each user: who logs in once stays logged in, as people do.

    :param browser: the browser.
    :param url: of Airflow.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._profiles: dict[str, BrowserContext] = {}
        self._pages: list[Page] = []

    def __call__(self, user: str = "ada", *, width: int = 1360, height: int = 900) -> Page:
        """Give a new page of a user, who logs in through Airflow's form the first time."""
        known = user in self._profiles
        page = self._profile(user).new_page()
        self._pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(60_000)
        if not known:
            page.goto(self._url)
            page.fill('input[name="username"]', user)
            page.fill('input[name="password"]', user)
            page.click('button[type="submit"]')
            page.wait_for_url(lambda url: "login" not in url)
        return page

    def calls_of_nobody(self) -> APIRequestContext:
        """Give the calls of somebody who is not logged in."""
        return self._profile("").request

    def close_pages(self) -> None:
        """Close what a test has opened."""
        for page in self._pages:
            page.close()
        self._pages.clear()

    def _profile(self, user: str) -> BrowserContext:
        if user not in self._profiles:
            self._profiles[user] = self._browser.new_context()
        return self._profiles[user]
