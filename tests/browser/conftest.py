# SPDX-License-Identifier: Apache-2.0
"""Airflow's API server, the sandbox, runs of two Dags, and a browser: created once for all browser tests.

The tasks run with ``dag.test()`` in this process; viewing their results needs no scheduler and no triggerer.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.browser_support import Site, Windows
    from wan_sandbox.server import Sandbox

# Where the unit tests run under another Airflow there is no Playwright.
collect_ignore_glob = [] if importlib.util.find_spec("playwright") else ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="write the screenshots of the documentation")


@pytest.fixture(scope="session")
def _chromium() -> str:
    """The path of a Chromium; skips the tests before anything is started."""
    from tests.browser.chromium import chromium

    return chromium()


@pytest.fixture(scope="session")
def browser_sandbox(_chromium: str, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox 600 times as fast as RunComfy. One small clip is used for all videos, except in screenshots."""
    from wan_sandbox.server import Sandbox

    video_bytes = None if request.config.getoption("--screenshots", default=False) else 100_000
    with (
        pytest.MonkeyPatch.context() as environment,
        Sandbox(speed=600, video_bytes=video_bytes, buckets=("photos", "videos")) as started,
    ):
        for name, value in started.env().items():
            environment.setenv(name, value)
        yield started


@pytest.fixture(scope="session")
def site(_chromium: str, airflow_db: Path, browser_sandbox: Sandbox) -> Iterator[Site]:
    """Airflow with a run of single requests and one of a batch."""
    from tests.browser.browser_support import Site
    from tests.gallery.airflow_server import AirflowServer

    airflow = AirflowServer()
    with airflow.listening() as url:
        found = Site(airflow, url, browser_sandbox)
        found.run_dags()
        yield found


@pytest.fixture(scope="session")
def browser(_chromium: str, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium, started after all Dags have run: Playwright leaves an event loop running."""
    from playwright.sync_api import sync_playwright

    from tests.browser.chromium import FLAGS, free_of_proxies

    with sync_playwright() as playwright:
        profile = free_of_proxies(tmp_path_factory.mktemp("profile"))
        launched = playwright.chromium.launch(executable_path=_chromium, args=list(FLAGS), env=profile, timeout=240_000)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def _windows(browser: Browser, site: Site) -> Windows:
    from tests.browser.browser_support import Windows

    return Windows(browser, site)


@pytest.fixture
def page_of(_windows: Windows) -> Iterator[Windows]:
    """Returns new pages of somebody who is logged in."""
    yield _windows
    _windows.close_pages()


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Writes a screenshot for the documentation, if that was asked for."""

    from PIL import Image

    from tests.browser.browser_support import STATIC

    def take(page: Page, name: str) -> None:
        if request.config.getoption("--screenshots", default=False):
            page.wait_for_load_state("networkidle")
            # Median cut keeps photographs and backgrounds; 256 colours are a third of the bytes.
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(256).save(STATIC / name, optimize=True)

    return take
