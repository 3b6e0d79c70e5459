# SPDX-License-Identifier: Apache-2.0
"""The tab with the videos of a run, in a real browser and in Airflow's own pages.

What needs no browser is tested over HTTP in ``tests/gallery/test_routes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from airflow_provider_wan.gallery.run_cards import RunTask
from demo import contact_sheet
from demo.table import Row
from tests.browser.browser_support import (
    BATCH_DAG_ID,
    BATCH_SIZE,
    DAG_ID,
    GOOD,
    HOSTILE,
    MODEL,
    OTHER_MODEL,
    Site,
    Windows,
)
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
# The relative luminance and the ratio are those of WCAG 2; 4.5 is its level AA for text of this size.
LOW_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    return colour.length === 4 && colour[3] === 0 ? behind(element.parentElement) : colour;
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter(own).map((element) => {
    const [one, two] = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))];
    return [element.textContent.trim(), (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
}"""
BACKGROUND = "body => getComputedStyle(body).backgroundColor"
LOADED = "image => image.decode().then(() => image.naturalWidth)"


@pytest.fixture
def slow_generations(site: Site) -> Iterator[None]:
    """One generation that does not end during a test, and a queue behind it."""
    site.sandbox.control("speed", {"speed": 0.01})
    site.sandbox.control("account", {"concurrency": 1})
    yield
    site.sandbox.control("account", {"concurrency": site.sandbox.settings.concurrency})
    site.sandbox.control("speed", {"speed": 600})


def test_tab_shows_the_videos_of_a_run_and_finds_them(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
    frame = page_of.tab(site.run_id)
    expect(frame.locator("li.card")).to_have_count(6)
    expect(frame.locator("video")).to_have_count(3)
    expect(frame.locator(".summary")).to_contain_text("3 landed, 1 failed, 2 refused")
    assert frame.locator("body").evaluate(BACKGROUND) == "rgb(255, 255, 255)"
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
    frame.get_by_role("button", name="Apply").click()
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
    with page.expect_download() as saved:
        frame.get_by_role("link", name="Download astronaut.mp4").click()
    assert saved.value.suggested_filename == "astronaut.mp4"
    frame.get_by_role("link", name="make_video.submit [0]").click()
    page.wait_for_url("**/tasks/make_video.submit/mapped/0**")


def test_dark_follows_airflow(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
    page = page_of()
    page.add_init_script("if (window === top) localStorage.setItem('theme', 'dark')")
    frame = page_of.tab(site.run_id, page=page)
    try:
        expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
        assert frame.locator("body").evaluate(BACKGROUND) == "rgb(22, 29, 45)"
        screenshot(page, "gallery-dark.png")
    finally:
        page.evaluate("localStorage.removeItem('theme')")


def test_narrow_window_needs_no_scrolling_sideways(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
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
    links = page.request.get(f"{site.api(site.batch_run_id, BATCH_DAG_ID)}/taskInstances/make_videos/links")
    assert "/browser/videos/batch" in str(links.json())


def test_ended_batch_shows_the_outcome_of_each_image(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.batch_run_id, BATCH_DAG_ID)
    expect(page.locator(".summary")).to_contain_text("25 landed, 3 failed, 2 refused, 5.00 USD")
    expect(page.locator(".progress")).to_be_hidden()
    expect(page.locator("li.card").first).to_contain_text("Take 0: nearer")
    expect(page.locator("li.card").first).to_contain_text("0.2 USD")
    page.get_by_role("link", name="next").click()
    expect(page.locator("nav.pages .here")).to_have_text("page 2 of 2")
    assert page.locator("video").first.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    page.get_by_role("link", name="failed (3)").click()
    expect(page.locator("ul.cards")).to_contain_text("shows too much")
    assert "index.html" in str(site.sandbox.bucket_control("objects?bucket=videos&prefix=batch/index.html"))


def test_contact_sheet_plays_videos_from_a_folder(
    site: Site, page_of: Windows, screenshot: Screenshot, tmp_path: Path
) -> None:
    from airflow_provider_wan.hooks.gcs import storage_client

    rows = []
    for number, name in enumerate(GOOD, 1):
        video = f"{Path(name).stem}.mp4"
        data = storage_client().bucket("videos").blob(video).download_as_bytes()
        (tmp_path / video).write_bytes(data)
        rows.append(Row(name, f"gs://videos/{video}", len(data), cost_usd=number / 10))
    rows.append(Row("chelsea.jpg", refused="it is 451x300 px, a side must have at least 360 px"))
    page = page_of()

    page.goto(contact_sheet.write(tmp_path, rows).as_uri())

    cards, rows_of_table = page.locator("li.card:visible"), page.locator("tbody tr:visible")
    expect(cards.locator("video")).to_have_count(3)
    assert cards.locator("video").first.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    assert page.locator("img").first.evaluate(LOADED) > 0
    page.reload()
    screenshot(page, "contact-sheet.png")

    page.get_by_role("link", name="refused (1)").click()
    expect(cards).to_have_count(1)
    expect(cards).to_contain_text("at least 360 px")
    page.get_by_role("link", name="all (4)").click()
    page.get_by_role("link", name="table").click()
    expect(cards).to_have_count(0)
    expect(rows_of_table).to_have_count(4)
    page.get_by_role("link", name="cost").click()
    expect(page.get_by_role("columnheader", name="cost")).to_have_attribute("aria-sort", "ascending")
    expect(rows_of_table.locator(".number:has-text('USD')")).to_have_text(["0.1 USD", "0.2 USD", "0.3 USD"])
    page.get_by_role("link", name="cost").click()
    expect(rows_of_table.locator(".number:has-text('USD')")).to_have_text(["0.3 USD", "0.2 USD", "0.1 USD"])
    page.locator("input[name=cost]").fill("0.2")
    page.get_by_role("button", name="Apply").click()
    expect(rows_of_table).to_have_count(2)
    page.get_by_label("Search by file name").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_be_visible()


def test_table_is_sorted_and_filtered_by_the_server(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.batch_run_id, BATCH_DAG_ID)
    page.get_by_role("link", name="table").click()
    expect(page.locator("tbody tr")).to_have_count(24)
    page.get_by_role("link", name="name", exact=True).click()
    expect(page.get_by_role("columnheader", name="name")).to_have_attribute("aria-sort", "ascending")
    names = page.locator("tbody th").all_inner_texts()
    assert names == sorted(names)
    page.locator("input[name=cost]").fill("0.1")
    page.get_by_role("combobox", name="sort by").select_option("-cost")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".found")).to_have_text("25 found")
    expect(page.get_by_role("columnheader", name="cost")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("tbody td.number:has-text('USD')")).to_have_count(24)
    page.get_by_role("link", name="Clear").click()
    expect(page.locator("nav.pages .here")).to_have_text("page 1 of 2")
    expect(page.locator("tbody tr")).to_have_count(24)


def test_models_are_shown_side_by_side(site: Site, page_of: Windows, screenshot: Screenshot) -> None:
    page = page_of.gallery(site.write_takes(), page=page_of(height=760))
    expect(page.locator(".compare tbody tr")).to_have_count(3)
    expect(page.get_by_role("columnheader")).to_contain_text(["image", MODEL, OTHER_MODEL])
    first = page.locator(".compare tbody tr").first
    expect(first.locator("video")).to_have_count(2)
    heights = first.locator("video").evaluate_all("videos => videos.map(v => v.getBoundingClientRect().top)")
    assert heights[0] == heights[1]
    for row in (0, 2):  # without a poster, the first frame of a video that comes into view is loaded
        video = page.locator(".compare tbody tr").nth(row).locator("video").nth(1)
        video.scroll_into_view_if_needed()
        expect(video).to_have_js_property("preload", "metadata")
        page.wait_for_function("video => video.videoWidth > 0", arg=video.element_handle())
    page.evaluate("scrollTo(0, 0)")
    screenshot(page, "gallery-side-by-side.png")
    page.get_by_role("combobox", name="model").select_option(OTHER_MODEL)
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("video")).to_have_count(3)
    page.get_by_role("link", name="cards", exact=True).click()
    expect(page.locator("li.card")).to_have_count(3)


def test_arrow_keys_move_between_videos_and_space_plays(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.run_id, page=page_of(width=1000, height=800))
    cards = page.locator("li.card")
    expect(cards).to_have_count(6)
    focused = page.locator("li.card:focus")
    while not focused.count():  # as a person gets there
        page.keyboard.press("Tab")
    expect(cards.nth(0)).to_be_focused()
    assert focused.evaluate("card => getComputedStyle(card).outlineStyle") == "solid"
    for key, number in (("ArrowRight", 1), ("ArrowDown", 3), ("ArrowLeft", 2), ("ArrowUp", 0), ("End", 5)):
        page.keyboard.press(key)
        expect(cards.nth(number)).to_be_focused()
    with_video = page.locator("li.card:has(video)").first
    with_video.focus()
    with_video.locator("video").evaluate("video => { video.muted = true; }")
    page.keyboard.press("Space")
    expect(with_video.locator("video")).to_have_js_property("paused", False)
    page.keyboard.press("Space")
    expect(with_video.locator("video")).to_have_js_property("paused", True)
    page.keyboard.press("Tab")  # out of the card, to the link in it: the arrows are no trap
    expect(with_video).not_to_be_focused()


def test_posters_are_shown_instead_of_loading_videos(site: Site, page_of: Windows) -> None:
    page = page_of.gallery(site.run_id)
    posters = page.locator("video").evaluate_all("videos => videos.map(video => video.poster)")
    assert len(posters) == 3
    for address in posters:
        assert page.request.get(address).headers["content-type"] == "image/jpeg"
    assert page.locator("video").evaluate_all("videos => videos.map(video => video.preload)") == ["none"] * 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(site: Site, page_of: Windows, theme: Literal["light", "dark"]) -> None:
    page = page_of()
    page.emulate_media(color_scheme=theme)
    for view in ("cards", "table"):
        page.goto(f"{page_of.address(site.run_id)}&view={view}&sort=-cost")
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        assert page.evaluate(LOW_CONTRAST) == []


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
