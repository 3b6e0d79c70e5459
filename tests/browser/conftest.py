# SPDX-License-Identifier: Apache-2.0
"""One Airflow with the sandbox, one run of the daily Dag, and a browser to look at it with."""

from __future__ import annotations

import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "live")]

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.browser_support import LinkState, Windows

# Where the unit tests run under another Airflow there is no Playwright.
collect_ignore_glob = [] if importlib.util.find_spec("playwright") else ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="write the screenshots of the documentation")


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkState]:
    """A run with three landed videos, one failed generation and two refused photographs."""
    from demo.gallery import PHOTOS_BUCKET, VIDEOS_BUCKET, Gallery
    from demo.local_airflow import LocalAirflow
    from demo.sandbox_process import SandboxProcess
    from tests.browser.browser_support import BATCH_DAG_ID, DAG_ID, USERS, LinkState
    from tests.browser.chromium import chromium
    from tests.live.postgres import Postgres

    executable = chromium()  # skip before anything is started
    assert executable
    home = tmp_path_factory.mktemp("browser")
    arguments = ["--speed", "60", "--bucket", PHOTOS_BUCKET, "--bucket", VIDEOS_BUCKET]
    with SandboxProcess(home / "sandbox", arguments) as sandbox, Postgres() as postgres:
        photos = Gallery(sandbox.bucket_url).publish_photos()
        with LocalAirflow(
            home / "airflow",
            dags_folders=[ROOT / "dags", Path(__file__).parent / "dags"],
            env=sandbox.env,
            database=postgres.url,
            users=USERS,
        ) as airflow:
            airflow.wait_for_dags(DAG_ID, BATCH_DAG_ID)
            airflow.client.unpause(DAG_ID)
            airflow.client.unpause(BATCH_DAG_ID)
            found = LinkState(airflow, sandbox, photos, "", postgres.url)
            sandbox.add_fault(
                "generation", "fail", prompt_contains="rocket", error="the picture shows too much"
            )
            run_id = found.start("2026-01-15", sorted(photos))
            assert airflow.client.wait_run(DAG_ID, run_id, timeout_s=120) == "failed"  # because of the one
            yield LinkState(airflow, sandbox, photos, run_id, postgres.url)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    from tests.browser.chromium import FLAGS, chromium, free_of_proxies

    executable = chromium()
    with sync_playwright() as playwright:
        profile = free_of_proxies(tmp_path_factory.mktemp("profile"))
        launched = playwright.chromium.launch(executable_path=executable, args=list(FLAGS), env=profile)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def _windows(browser: Browser, seen: LinkState) -> Windows:
    from tests.browser.browser_support import Windows

    return Windows(browser, seen.airflow.url)


@pytest.fixture
def page_of(_windows: Windows) -> Iterator[Windows]:
    """Gives a new page, with somebody logged in."""
    yield _windows
    _windows.close_pages()


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Writes a screenshot for the documentation, if that was asked for."""

    from PIL import Image

    from tests.browser.browser_support import STATIC

    def take(page: Page, name: str) -> None:
        if request.config.getoption("--screenshots", default=False):
            time.sleep(0.5)  # pictures and fonts that are still being painted
            # Median cut keeps photographs and backgrounds; 256 colours are a third of the bytes.
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(256).save(STATIC / name, optimize=True)

    return take
