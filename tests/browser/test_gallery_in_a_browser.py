# SPDX-License-Identifier: Apache-2.0
"""The tab with the videos of a run, in a real browser and in Airflow's own pages.

What needs no browser is tested over HTTP in ``tests/gallery/test_routes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_wan.gallery.cards import RunTask
from demo import contact_sheet
from demo.table import Row
from tests.browser.browser_support import BATCH_DAG_ID, BATCH_SIZE, DAG_ID, GOOD, HOSTILE, Site, Windows
from tests.gallery.airflow_server import write_run, write_xcoms

pytestmark = pytest.mark.live

Screenshot = Callable[[Page, str], None]

PLAY_TO_THE_END = """video => new Promise((resolve, reject) => {
  video.muted = true; video.playbackRate = 8;
  video.addEventListener("ended", () => resolve([video.currentTime, video.duration, video.videoWidth]));
  video.addEventListener("error", () => reject(new Error(video.error.message)));
  video.play().catch(reject);
})"""
SEEK = """(video, to) => new Promise((resolve, reject) => {
  video.addEventListener("seeked", () => resolve(video.currentTime), { once: true });
  video.addEventListener("error", () => reject(new Error(video.error.message)));
  video.currentTime = to;
})"""
LOADED = "image => image.decode().then(() => image.naturalWidth)"


@pytest.fixture
def slow_generations(site: Site) -> Iterator[None]:
    """One generation that does not end during a test, and a queue behind it."""
    site.sandbox.control("speed", {"speed": 0.01})
    site.sandbox.control("account", {"concurrency": 1})
    yield
    site.sandbox.control("account", {"concurrency": site.sandbox.settings.concurrency})
    site.sandbox.control("speed", {"speed": 600})


def test_tab_shows_the_videos_of_a_run_and_finds_them(
    site: Site, page_of: Windows, screenshot: Screenshot
) -> None:
    frame = page_of.tab(site.run_id)
    expect(frame.locator("li.card")).to_have_count(6)
    expect(frame.locator("video")).to_have_count(3)
    expect(frame.locator(".summary")).to_contain_text("3 landed, 1 failed, 2 refused")
    for picture in frame.locator("li.card img").all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate(LOADED) > 0
    frame.locator("h1").scroll_into_view_if_needed()
    screenshot(frame.owner.page, "gallery-light.png")
    for name, count, text in (
        ("failed", 1, "shows too much"),
        ("refused", 2, "at least 360 px"),
        ("all", 6, ""),
    ):
        frame.get_by_role("link", name=f"{name} (").click()
        expect(frame.locator("nav.filters .here")).to_contain_text(name)
        expect(frame.locator("li.card")).to_have_count(count)
        expect(frame.locator("ul.cards")).to_contain_text(text)
    frame.get_by_label("Search by file name").fill("astro")
    frame.get_by_role("button", name="Search").click()
    expect(frame.locator("li.card")).to_have_count(1)
    expect(frame.locator("li.card h2")).to_have_text("astronaut.jpg")


def test_video_plays_to_its_end_and_seeks(site: Site, page_of: Windows) -> None:
    page = page_of()
    answers: list[int] = []
    page.on("response", lambda answer: answers.append(answer.status) if "/video?" in answer.url else None)
    video = page_of.gallery(site.run_id, page=page).locator("video").first
    assert video.evaluate("video => video.readyState") == 0  # nothing is fetched before somebody plays it
    assert answers == []

    position, duration, width = video.evaluate(PLAY_TO_THE_END)

    assert duration == pytest.approx(5, abs=0.1)
    assert position == pytest.approx(duration, abs=0.1)
    assert width > 0
    assert video.evaluate(SEEK, 1.5) == pytest.approx(1.5, abs=0.1)
    assert set(answers) == {206}


def test_links_of_a_card_lead_out_of_the_frame(site: Site, page_of: Windows) -> None:
    page = page_of()
    frame = page_of.tab(site.run_id, page=page)
    page.context.route("https://console.cloud.google.com/**", lambda route: route.fulfill(body="the console"))
    with page.context.expect_page() as opened:
        frame.get_by_role("link", name="gs://videos/").first.click()
    opened.value.wait_for_url("https://console.cloud.google.com/storage/browser/_details/videos/*.mp4")
    opened.value.close()
    frame.get_by_role("link", name="make_video.submit [0]").click()
    page.wait_for_url("**/tasks/make_video.submit/mapped/0**")


def test_dark_follows_airflow(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
    page = page_of()
    frame = page_of.tab(site.run_id, page=page)
    colour = "body => getComputedStyle(body).backgroundColor"
    assert frame.locator("body").evaluate(colour) == "rgb(255, 255, 255)"
    try:
        page.evaluate("localStorage.setItem('theme', 'dark')")
        page.reload()
        expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
        assert frame.locator("body").evaluate(colour) == "rgb(22, 29, 45)"
        screenshot(page, "gallery-dark.png")
    finally:
        page.evaluate("localStorage.removeItem('theme')")


def test_narrow_window_needs_no_scrolling_sideways(
    site: Site, page_of: Windows, screenshot: Screenshot
) -> None:
    page = page_of.gallery(site.run_id, page=page_of(width=420, height=860))
    expect(page.locator("li.card")).to_have_count(6)
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    screenshot(page, "gallery-narrow.png")


@pytest.mark.usefixtures("slow_generations")
def test_hostile_prompt_stays_text_and_the_page_updates_itself(site: Site, page_of: Windows) -> None:
    entries, tasks = site.submit(HOSTILE, 3), [RunTask("make_video.submit", n, "running") for n in range(3)]
    write_run("hostile", entries[:2], tasks, dag_id=DAG_ID)
    page = page_of.gallery("hostile")
    expect(page.locator("li.card .prompt").first).to_have_text(HOSTILE)
    expect(page).to_have_title("Videos")
    expect(page.locator("li.card .prompt *")).to_have_count(0)
    expect(page.locator(".state", has_text="queued, position").first).to_be_visible()
    expect(page.locator(".prompt")).to_have_count(2)
    write_xcoms("hostile", entries[2:], dag_id=DAG_ID)
    expect(page.locator(".prompt")).to_have_count(3)


@pytest.mark.usefixtures("slow_generations")
def test_running_batch_shows_each_image(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
    run_id, page = site.start_batch(), page_of()
    frame = page_of.tab(run_id, BATCH_DAG_ID, page=page)
    expect(frame.locator("nav.filters")).to_contain_text(f"all ({BATCH_SIZE})")
    expect(frame.locator(".progress")).to_contain_text(f"make_videos: 0 of {BATCH_SIZE} done")
    frame.get_by_role("link", name="in progress (20)").click()
    expect(frame.locator("li.card")).to_have_count(20)
    expect(frame.locator(".state", has_text="queued, position").first).to_be_visible()
    expect(frame.locator(".prompt").first).to_contain_text("Take 0: nearer")
    screenshot(page, "gallery-batch.png")
    frame.get_by_role("link", name="refused (2)").click()
    expect(frame.locator("ul.cards")).to_contain_text("at least 360 px")
    frame.get_by_role("link", name=f"to do ({BATCH_SIZE - 22})").click()
    expect(frame.locator("li.card")).to_have_count(BATCH_SIZE - 22)
    page.goto(site.run_page(run_id, BATCH_DAG_ID) + "/tasks/make_videos/details")
    expect(page.get_by_role("link", name="RunComfy generations")).to_be_visible()


def test_ended_batch_shows_the_outcome_of_each_image(site: Site, page_of: Windows) -> None:
    page = page_of()
    frame = page_of.tab(site.batch_run_id, BATCH_DAG_ID, page=page)
    expect(frame.locator(".summary")).to_contain_text("25 landed, 3 failed, 2 refused, 5.00 USD")
    expect(frame.locator(".progress")).to_be_hidden()
    expect(frame.locator("li.card").first).to_contain_text("Take 0: nearer")
    expect(frame.locator("li.card").first).to_contain_text("0.2 USD")
    frame.get_by_role("link", name="next").click()
    expect(frame.locator("nav.pages .here")).to_have_text("page 2 of 2")
    assert frame.locator("video").first.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    frame.get_by_role("link", name="failed (3)").click()
    expect(frame.locator("ul.cards")).to_contain_text("shows too much")
    page.goto(site.run_page(site.batch_run_id, BATCH_DAG_ID) + "/tasks/make_videos/details")
    expect(page.get_by_role("link", name="Bucket")).to_be_visible()
    assert "index.html" in str(site.sandbox.bucket_control("objects?bucket=videos&prefix=batch/index.html"))


def test_contact_sheet_plays_videos_from_a_folder(
    site: Site, page_of: Windows, screenshot: Screenshot, tmp_path: Path
) -> None:
    from airflow_provider_wan.hooks.gcs import storage_client

    rows = []
    for name in GOOD:
        video = f"{Path(name).stem}.mp4"
        data = storage_client().bucket("videos").blob(video).download_as_bytes()
        (tmp_path / video).write_bytes(data)
        rows.append(Row(name, f"gs://videos/{video}", len(data), cost_usd=0.2))
    rows.append(Row("chelsea.jpg", refused="it is 451x300 px, a side must have at least 360 px"))
    page = page_of()

    page.goto(contact_sheet.write(tmp_path, rows).as_uri())

    expect(page.locator("video")).to_have_count(3)
    assert page.locator("video").first.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    assert page.locator("img").first.evaluate(LOADED) > 0
    page.reload()
    screenshot(page, "contact-sheet.png")


def test_thousand_videos_stay_usable(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.write_crowd(1000))
    expect(page.locator("nav.filters")).to_contain_text("all (1,000)")
    expect(page.locator("li.card video")).to_have_count(24)
    expect(page.locator("li.card img").first).to_have_js_property("complete", True)
    page.get_by_role("link", name="next").click()
    expect(page.locator("nav.pages .here")).to_have_text("page 2 of 42")
    page.get_by_label("Go to page").fill("42")
    page.get_by_role("button", name="Go").click()
    expect(page.locator("nav.pages .here")).to_have_text("page 42 of 42")
    expect(page.locator("li.card")).to_have_count(1000 - 41 * 24)


def test_page_without_permission_says_so(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.run_id, page=page_of(""))
    expect(page.locator("body")).to_have_text(
        "You may not see the videos of this Dag: that takes permission to read its XComs."
    )
