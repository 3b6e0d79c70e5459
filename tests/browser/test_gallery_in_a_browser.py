# SPDX-License-Identifier: Apache-2.0
"""The tab with the videos of a run, in a real browser against a real Airflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, Page, expect

from demo import contact_sheet
from demo.airflow_client import TaskKey
from demo.gallery import VIDEOS_BUCKET, Gallery
from demo.table import Row
from tests.browser.browser_support import BATCH_DAG_ID, BATCH_SIZE, DAG_ID, HOSTILE, LinkState, Windows
from tests.browser.crowds import multiply

pytestmark = pytest.mark.live

Screenshot = Callable[[Page, str], None]

PLAY_TO_THE_END = """video => new Promise((resolve, reject) => {
  video.muted = true; video.playbackRate = 4;
  video.addEventListener("ended", () => resolve([video.currentTime, video.duration, video.videoWidth]));
  video.addEventListener("error", () => reject(new Error(video.error.message)));
  video.play().catch(reject);
})"""
SEEK = """(video, to) => new Promise((resolve, reject) => {
  video.addEventListener("seeked", () => resolve(video.currentTime), { once: true });
  video.addEventListener("error", () => reject(new Error(video.error.message)));
  video.currentTime = to;
})"""


def open_tab(page: Page, seen: LinkState, run_id: str | None = None, dag_id: str = DAG_ID) -> FrameLocator:
    """Open a run as a person does, and click on the tab."""
    page.goto(seen.tab(run_id, dag_id).rsplit("/plugin/", 1)[0])
    page.get_by_role("link", name="Videos", exact=True).or_(
        page.get_by_text("Videos", exact=True)
    ).first.click()
    frame = page.frame_locator("iframe")
    expect(frame.locator("h1")).to_have_text("Videos")
    return frame


def turn_to_page(frame: FrameLocator, number: int, pages: int) -> None:
    """Click on "next" and wait for its page: what a script does before that, it does to the page that goes away."""
    frame.get_by_role("link", name="next").click()
    expect(frame.locator("nav .here").last).to_have_text(f"page {number} of {pages}")


@pytest.fixture
def slow_run(seen: LinkState) -> Iterator[str]:
    """A run that is in progress: two generations run, the others queue."""
    seen.sandbox.control("speed", {"speed": 0.5})
    names = ["astronaut.jpg", "coffee.jpg", "hubble_deep_field.jpg", "rocket.jpg"]
    yield seen.start("2026-01-16", names, HOSTILE)
    seen.sandbox.control("speed", {"speed": 600})


@pytest.fixture(scope="module")
def batch_runs() -> dict[str, str]:
    """What one test starts and another one looks at again."""
    return {}


def test_the_tab_shows_as_many_videos_as_landed(
    seen: LinkState, page_of: Windows, screenshot: Screenshot
) -> None:
    frame = open_tab(page_of(), seen)
    expect(frame.locator("li.card")).to_have_count(6)
    expect(frame.locator("video")).to_have_count(3)
    assert len(seen.landed_objects()) == 3
    expect(frame.locator(".summary")).to_contain_text("3 landed, 1 failed, 2 refused")
    for picture in frame.locator("img").all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    frame.locator("h1").scroll_into_view_if_needed()
    screenshot(frame.owner.page, "gallery-light.png")


def test_a_video_plays_to_its_end_and_seeks(seen: LinkState, page_of: Windows) -> None:
    page = page_of()
    answers: list[int] = []
    page.on("response", lambda answer: answers.append(answer.status) if "/video?" in answer.url else None)
    frame = open_tab(page, seen)
    video = frame.locator("video").first
    assert video.evaluate("video => video.readyState") == 0  # nothing was fetched before somebody plays it
    assert answers == []

    position, duration, width = video.evaluate(PLAY_TO_THE_END)

    assert duration == pytest.approx(5, abs=0.1)
    assert position == pytest.approx(duration, abs=0.1)
    assert width > 0
    assert video.evaluate(SEEK, 1.5) == pytest.approx(1.5, abs=0.1)
    assert set(answers) == {206}


def test_filters_show_what_they_say(seen: LinkState, page_of: Windows) -> None:
    frame = open_tab(page_of(), seen)
    for name, count, word in (
        ("failed", 1, "shows too much"),
        ("refused", 2, "at least 360 px"),
        ("landed", 3, ""),
    ):
        frame.get_by_role("link", name=name).click()
        expect(frame.locator("li.card")).to_have_count(count)
        expect(frame.locator("ul.cards")).to_contain_text(word)
        expect(frame.locator("nav .here").first).to_contain_text(name)


def test_dark_follows_airflow(seen: LinkState, page_of: Windows, screenshot: Screenshot) -> None:
    page = page_of()
    frame = open_tab(page, seen)
    light = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")

    try:
        page.evaluate("localStorage.setItem('theme', 'dark')")
        page.reload()
        expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
        dark = frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 29, 45)")
        frame.locator("h1").scroll_into_view_if_needed()
        screenshot(page, "gallery-dark.png")
    finally:
        page.evaluate("localStorage.removeItem('theme')")


def test_a_narrow_window_needs_no_scrolling_sideways(
    seen: LinkState, page_of: Windows, screenshot: Screenshot
) -> None:
    page = page_of(width=420, height=860)
    page.goto(f"{seen.airflow.url}/wan/dags/{DAG_ID}/videos?run_id={seen.quoted_run_id}")
    expect(page.locator("li.card")).to_have_count(6)
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    page.locator("video").first.scroll_into_view_if_needed()
    screenshot(page, "gallery-narrow.png")


def test_the_address_that_airflow_3_1_makes_leads_to_the_run_too(seen: LinkState, page_of: Windows) -> None:
    assert "+" in seen.run_id
    answer = page_of().request.get(f"{seen.airflow.url}/wan/dags/{DAG_ID}/videos?run_id={seen.run_id}")
    assert answer.status == 200


def test_a_hostile_prompt_stays_text_and_a_queue_is_shown(
    seen: LinkState, slow_run: str, page_of: Windows
) -> None:
    page = page_of()
    frame = open_tab(page, seen, slow_run)
    expect(frame.locator("li.card .prompt").first).to_have_text(HOSTILE, timeout=120_000)
    expect(page).not_to_have_title("owned")
    expect(frame.locator("title")).to_have_js_property("text", "Videos")
    expect(frame.locator("li.card .prompt *")).to_have_count(0)
    # The page reads itself again while requests are submitted, and asks where each stands.
    expect(frame.locator(".state", has_text="queued, position").first).to_be_visible(timeout=120_000)
    expect(frame.locator("li.card")).to_have_count(4)


def test_a_batch_shows_each_image_while_it_is_under_way(
    seen: LinkState, batch_runs: dict[str, str], page_of: Windows, screenshot: Screenshot
) -> None:
    seen.sandbox.control("speed", {"speed": 0.5})
    try:
        run_id = batch_runs["run"] = seen.start_batch()
        task = TaskKey(BATCH_DAG_ID, run_id, "make_videos")
        seen.airflow.client.wait_task(task, "deferred", timeout_s=60)
        page = page_of()
        frame = open_tab(page, seen, run_id, BATCH_DAG_ID)
        expect(frame.locator("nav")).to_contain_text(f"all ({BATCH_SIZE})")
        expect(frame.locator(".progress")).to_contain_text(f"make_videos: 0 of {BATCH_SIZE} done")
        frame.get_by_role("link", name="in progress (20)").click()
        expect(frame.locator("li.card")).to_have_count(20)
        expect(frame.locator(".state", has_text="queued, position").first).to_be_visible(timeout=30_000)
        expect(frame.locator(".prompt").first).to_contain_text("Take 0: nearer")
        screenshot(page, "gallery-batch.png")
        frame.get_by_role("link", name="refused (2)").click()
        expect(frame.locator("ul.cards")).to_contain_text("at least 360 px")
        frame.get_by_role("link", name=f"to do ({BATCH_SIZE - 22})").click()
        expect(frame.locator("li.card")).to_have_count(BATCH_SIZE - 22)
        page.goto(seen.tab(run_id, BATCH_DAG_ID).rsplit("/plugin/", 1)[0] + "/tasks/make_videos/details")
        expect(page.get_by_role("link", name="RunComfy generations")).to_be_visible()
    finally:
        seen.sandbox.control("speed", {"speed": 600})


def test_a_user_without_permission_sees_nothing(seen: LinkState, page_of: Windows) -> None:
    may, may_not = page_of("victor"), page_of("nobody")
    base = f"{seen.airflow.url}/wan/dags/{DAG_ID}"
    run = f"run_id={seen.quoted_run_id}"
    routes = [
        f"{base}/videos?{run}",
        f"{base}/live?{run}",
        f"{base}/video?{run}&task_id=make_video.land&map_index=2",
        f"{base}/image?{run}&task_id=make_video.submit&map_index=2",
    ]
    stranger = page_of.calls_of_nobody()
    assert [may.request.get(route).status for route in routes] == [200] * 4
    assert [may_not.request.get(route).status for route in routes] == [403] * 4
    assert [stranger.get(route).status for route in routes] == [401] * 4
    may_not.goto(routes[0])
    expect(may_not.locator("body")).to_have_text(
        "You may not see the videos of this Dag: that takes permission to read its XComs."
    )


def test_media_of_another_run_or_dag_are_not_given(seen: LinkState, page_of: Windows) -> None:
    page = page_of()
    where = "task_id=make_video.land&map_index=2"
    base = f"{seen.airflow.url}/wan/dags"
    assert page.request.get(f"{base}/{DAG_ID}/video?run_id=other&{where}").status == 404
    assert (
        page.request.get(f"{base}/wan_single_video/video?run_id={seen.quoted_run_id}&{where}").status == 404
    )
    assert page.request.get(f"{base}/~/video?run_id={seen.quoted_run_id}&{where}").status == 404
    assert page.request.get(f"{base}/{DAG_ID}/videos?run_id=other").status == 404


def test_the_page_beside_the_videos_plays_them_from_a_folder(
    seen: LinkState, page_of: Windows, screenshot: Screenshot, tmp_path: Path
) -> None:
    bucket = Gallery(seen.sandbox.bucket_url)
    names = {url: name for name, url in seen.photos.items()}
    landed = [one for one in bucket.landed() if one.object_name.startswith("2026/01/15/")]
    for one in landed:
        bucket.download(one, tmp_path)
    rows = [Row(names[one.image_url], one.uri, one.size_bytes, cost_usd=one.cost_usd) for one in landed]
    rows.append(Row("chelsea.jpg", refused="it is 451x300 px, a side must have at least 360 px"))
    page = page_of()

    page.goto(contact_sheet.write(tmp_path, rows).as_uri())

    assert page.locator("video").count() == 3
    assert page.locator("video").first.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    assert page.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.reload()
    screenshot(page, "contact-sheet.png")


def test_a_batch_that_is_over_shows_how_each_image_ended(
    seen: LinkState, batch_runs: dict[str, str], page_of: Windows
) -> None:
    run_id = batch_runs["run"]
    assert seen.airflow.client.wait_run(BATCH_DAG_ID, run_id, timeout_s=120) == "success"
    page = page_of()
    frame = open_tab(page, seen, run_id, BATCH_DAG_ID)
    expect(frame.locator(".summary")).to_contain_text("25 landed, 3 failed, 2 refused, 5.00 USD")
    expect(frame.locator(".progress")).to_be_hidden()
    expect(frame.locator("li.card").first).to_contain_text("Take 0: nearer")
    expect(frame.locator("li.card").first).to_contain_text("0.2 USD")
    turn_to_page(frame, 2, 2)
    video = frame.locator("video").first
    assert video.evaluate(PLAY_TO_THE_END)[0] == pytest.approx(5, abs=0.1)
    frame.get_by_role("link", name="failed (3)").click()
    expect(frame.locator("ul.cards")).to_contain_text("shows too much")
    page.goto(seen.tab(run_id, BATCH_DAG_ID).rsplit("/plugin/", 1)[0] + "/tasks/make_videos/details")
    expect(page.get_by_role("link", name="Bucket")).to_be_visible()
    html = seen.sandbox.bucket_control(f"objects?bucket={VIDEOS_BUCKET}&prefix=batch/index.html")["objects"]
    assert [item["name"] for item in html] == ["batch/index.html"]


def test_a_thousand_videos_stay_usable(
    seen: LinkState, page_of: Windows, record_property: Callable[[str, object], None]
) -> None:
    page = page_of()
    for count in (10, 1000):
        run_id = multiply(seen, count)
        page.goto(seen.tab(run_id).rsplit("/plugin/", 1)[0])
        tab = page.get_by_text("Videos", exact=True).first
        tab.wait_for()
        page.wait_for_load_state("networkidle")
        started = time.perf_counter()
        tab.click()
        frame = page.frame_locator("iframe")
        frame.locator("li.card video").nth(min(count, 24) - 1).wait_for(state="attached")
        first_picture = frame.locator("li.card img").first
        first_picture.evaluate("image => image.decode()")
        took_s = time.perf_counter() - started
        record_property(f"seconds_from_click_to_usable_{count}", round(took_s, 2))
        print(f"{count} videos: usable {took_s:.2f} s after the click")
        expect(frame.locator("nav")).to_contain_text(f"all ({count})")
        expect(frame.locator("li.card")).to_have_count(min(count, 24))
    turn_to_page(frame, 2, 42)
