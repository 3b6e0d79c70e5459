# SPDX-License-Identifier: Apache-2.0
"""The page as HTML: what it says, where it links to, and that nothing from outside becomes markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_wan.gallery.card_list import PAGE_SIZE, CardList, PageQuery, RunView
from airflow_provider_wan.gallery.cards import Card
from airflow_provider_wan.gallery.pages import outside_link, render_page
from airflow_provider_wan.gallery.run_cards import BatchStatus, Entry, RunTask, cards_of
from tests.gallery.entries import MODEL, failed, landed, refused, submitted, waited

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>&"


class Tags(HTMLParser):
    """Collects the elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.pieces: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        self.pieces.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def page(cards: Sequence[Card], *, is_over: bool = False, uses_provider: bool = True, **query: object) -> Tags:
    what = PageQuery("a dag", "run+1", **query)  # type: ignore[arg-type]
    run = RunView(cards, is_over=is_over, uses_provider=uses_provider)
    shown, total = run.page(what)
    return Tags(render_page(run, shown, query=what, total=total, nonce="n0nce"))


def landed_videos(count: int) -> list[Card]:
    return cards_of([entry for number in range(count) for entry in (submitted(number), landed(number))])


def test_markup_in_any_field_shows_as_text() -> None:
    entries = [
        submitted(0, prompt=HOSTILE, variation=HOSTILE, model_id=HOSTILE, image=HOSTILE),
        waited(0, created_at=HOSTILE),
        landed(0, uri=f"gs://videos/{HOSTILE}"),
        Entry(HOSTILE, 1, "return_value", submitted(1).value),
        failed(1),
        refused(2),
    ]
    entries[4].value["error"] = HOSTILE
    entries[5].value[0]["rule"] = HOSTILE
    html = page(cards_of(entries), name="")

    assert len(html.all("script")) == 1  # its own
    assert not [attributes for _, attributes in html.tags if any(name.startswith("on") for name in attributes)]
    assert html.text.count(HOSTILE) >= 5
    assert all(image["src"] and image["src"].startswith("image?") for image in html.all("img"))
    assert [script.get("nonce") for script in html.all("script")] == ["n0nce"]
    assert HOSTILE in page([], name=HOSTILE).text


def test_video_is_fetched_only_when_somebody_plays_it() -> None:
    html = page(cards_of([submitted(), waited(), landed()]))
    (video,) = html.all("video")
    assert video["preload"] == "none"
    assert "autoplay" not in video
    assert [image["loading"] for image in html.all("img")] == ["lazy"]


def test_addresses_within_airflow_are_relative() -> None:
    html = page(landed_videos(100), name="mp4")
    links = [tag for tag in html.all("a") if tag.get("data-leave") != "blank"]
    addresses = [tag.get(name) for tag in links for name in ("href",)]
    addresses += [tag.get(name) for _, tag in html.tags for name in ("src", "poster") if name in tag]
    assert addresses
    assert [one for one in addresses if not one or "://" in one or one.startswith("/")] == []


def test_card_names_and_links_its_image_its_tasks_and_its_file() -> None:
    html = page(cards_of([submitted(3, image="gs://in/a b/Ada.png", variation="take 2"), failed(3)]))
    assert html.words.count("Ada.png") == 1
    assert "task submit [3] failed in wait [3] variation take 2" in html.words
    links = {tag["href"] for tag in html.all("a") if tag.get("data-leave")}
    assert links == {
        "https://console.cloud.google.com/storage/browser/_details/in/a%20b/Ada.png",
        "../../../dags/a%20dag/runs/run%2B1/tasks/submit/mapped/3",
        "../../../dags/a%20dag/runs/run%2B1/tasks/wait/mapped/3",
    }
    (image,) = html.all("img")
    assert image["alt"] == "Source image Ada.png"
    video = page(cards_of([submitted(), landed()])).all("video")[0]
    assert video["aria-label"] == "Video of a.jpg: a slow wave"


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("gs://b/x y?#.mp4", "https://console.cloud.google.com/storage/browser/_details/b/x%20y%3F%23.mp4"),
        (
            "https://storage.googleapis.com/b/x%20y.png",
            "https://console.cloud.google.com/storage/browser/_details/b/x%20y.png",
        ),
        ("https://images.example.com/a.jpg", "https://images.example.com/a.jpg"),
        ("javascript:alert(1)", ""),
        ("row 5", ""),
        ("gs://b", ""),
        ("https://[bad", ""),
        (None, ""),
    ],
)
def test_only_web_pages_and_objects_become_links(address: str | None, link: str) -> None:
    assert outside_link(address) == link


def test_thousand_videos_are_shown_in_pages() -> None:
    cards = landed_videos(1000)
    first, last, beyond = page(cards), page(cards, page=42), page(cards, page=900)
    assert len(first.all("video")) == PAGE_SIZE
    assert len(last.all("video")) == len(beyond.all("video")) == 1000 - 41 * PAGE_SIZE
    assert "page 42 of 42" in beyond.text
    assert "all (1,000)" in first.text


def test_form_jumps_to_a_page_of_the_same_search() -> None:
    html = page(landed_videos(100), state="landed", name="MP4", page=2)
    jump = [tag for tag in html.all("input") if tag.get("name") == "page"]
    assert [(tag["name"], tag["max"]) for tag in jump] == [("page", "5")]
    hidden = {(tag["name"], tag["value"]) for tag in html.all("input") if tag.get("type") == "hidden"}
    assert hidden == {("run_id", "run+1"), ("state", "landed"), ("name", "MP4")}
    (following,) = [tag["href"] for tag in html.all("a") if tag.get("rel") == "next"]
    query = parse_qs(urlsplit(following or "").query)
    assert query == {"run_id": ["run+1"], "state": ["landed"], "page": ["3"], "name": ["MP4"]}


@pytest.mark.parametrize(
    ("state", "count"),
    [
        ("all", 7),
        ("landed", 1),
        ("in progress", 1),
        ("failed", 2),
        ("refused", 1),
        ("may have been bought", 1),
        ("paid but not landed", 1),
    ],
)
def test_filters_show_as_many_cards_as_they_and_the_summary_say(state: str, count: int) -> None:
    entries = [submitted(0), landed(0), submitted(1), submitted(2), failed(2), refused(3)]
    entries += [submitted(4), failed(4, kind="WanCancelledError"), submitted(6), waited(6)]
    entries += [failed(5, kind="WanUnknownSubmissionError", request=None)]
    entries += [failed(6, kind="WanStorageError", task="land")]
    html = page(cards_of(entries), state=state)
    assert len(html.all("li")) == count
    assert f"{state} ({count})" in html.words
    assert state == "all" or f"{count} {state}" in html.words.partition("USD")[0]


def test_only_a_page_with_running_requests_is_updated() -> None:
    assert page(cards_of([submitted()])).all("body")[0]["data-live"]
    assert not page(cards_of([submitted(), landed()])).all("body")[0]["data-live"]


OTHER_MODEL = "wan-ai/wan-3.0/image-to-video"


def compared() -> list[Card]:
    """Return the cards of three images with one model, and of two of them with another."""
    entries = []
    for number, image in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
        entries += [submitted(number, image=image), waited(number), landed(number)]
    for number, image in enumerate(["a.jpg", "b.jpg"], 10):
        entries.append(submitted(number, image=image, model_id=OTHER_MODEL, prompt=f"move {number}"))
    entries += [waited(10, model_id=OTHER_MODEL, cost_usd=0.7), landed(10), failed(11)]
    return cards_of(entries)


def test_run_of_several_models_has_a_row_for_each_image_and_a_column_for_each_model() -> None:
    html = page(compared())
    assert (html.all("li"), len(html.all("tr")), len(html.all("td"))) == ([], 1 + 3, 3 * 2)
    assert f"image {MODEL} 3 of 3 usable, 0.60 USD, 0.20 USD per usable video, 2 min 14 s each" in html.words
    assert f"{OTHER_MODEL} 1 of 2 usable, 0.70 USD, 0.70 USD per usable video" in html.words
    assert len(html.all("video")) == 4
    assert "it shows too much" in html.words
    assert html.words.count("not made with this model") == 1
    assert html.words.count("cost 0.2 USD took 2 min 14 s") == 3


def test_comparison_can_be_left_for_cards_and_back() -> None:
    for cards, query, other, rows in (
        (compared(), {}, "cards", 3),
        (compared(), {"view": "cards"}, "models", 0),
        (landed_videos(2), {}, None, 0),
        (landed_videos(2), {"view": "models"}, None, 1),
    ):
        html = page(cards, **query)
        views = [parse_qs(urlsplit(tag["href"] or "").query).get("view") for tag in html.all("a")]
        assert ([other] in views) == (other is not None)
        assert len(html.all("tr")) == (rows and rows + 1)


def test_comparison_is_filtered_and_paged_by_image() -> None:
    entries = []
    for number in range(PAGE_SIZE + 2):
        entries += [submitted(number, image=f"{number}.jpg"), landed(number)]
        entries.append(submitted(number + 100, image=f"{number}.jpg", model_id=OTHER_MODEL))
    cards = cards_of(entries)
    assert len(page(cards).all("tr")) == 1 + PAGE_SIZE
    last = page(cards, page=2)
    assert len(last.all("tr")) == 1 + 2
    assert "page 2 of 2" in last.words
    assert len(page(cards, name="7.jpg").all("tr")) == 1 + 2  # 7 and 17
    assert "not made with this model" not in page(cards, state="landed").words


@pytest.mark.parametrize(
    ("query", "is_over", "text"),
    [
        ({"model": "none"}, False, "No video of this run matches."),
        ({}, False, "No video yet."),
        ({}, True, "This run has ended and made no video."),
        ({"state": "failed"}, True, "None is failed."),
        ({"name": "ada"}, False, "No image or video of this run has such a name."),
    ],
)
def test_empty_page_says_why(query: dict[str, str], is_over: bool, text: str) -> None:
    assert text in page([], is_over=is_over, **query).words


def test_run_without_a_task_of_the_provider_says_why_its_tab_is_empty() -> None:
    html = page([], uses_provider=False)
    assert "No task of this run uses the Wan provider" in html.words
    assert html.all("form") == []


def takes() -> list[Card]:
    """Return the cards of four takes, of different models, checks, costs and times."""
    entries = []
    for number, (model, status, cost, second) in enumerate(
        [
            (MODEL, "good", 0.2, 30),
            (MODEL, "bad", 0.5, 10),
            (OTHER_MODEL, "good", 0.9, 20),
            (MODEL, "", None, None),
        ]
    ):
        finished = second and f"2026-01-15T00:00:{second}+00:00"
        times = {"created_at": "2026-01-15T00:00:00+00:00", "finished_at": finished}
        entries += [submitted(number, model_id=model, image=f"{number}.jpg")]
        entries += [waited(number, model_id=model, cost_usd=cost, **times)]
        entries += [landed(number, verdict={"status": status, "detail": "it is black"} if status else None)]
    return cards_of(entries)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, "0 1 2 3"),
        ({"sort": "-name"}, "3 2 1 0"),
        ({"sort": "cost"}, "0 1 2 3"),
        ({"sort": "-cost"}, "2 1 0 3"),
        ({"sort": "time"}, "1 2 0 3"),
        ({"sort": "-time"}, "0 2 1 3"),
        ({"sort": "checks"}, "1 0 2 3"),
        ({"sort": "model"}, "0 1 3 2"),
        ({"sort": "nothing"}, "0 1 2 3"),
        ({"model": MODEL}, "0 1 3"),
        ({"verdict": "good"}, "0 2"),
        ({"verdict": "bad"}, "1"),
        ({"verdict": "none"}, "3"),
        ({"cost": 0.5}, "1 2"),
        ({"seconds": 20.0}, "0 2"),
        ({"seconds": 20.0, "model": MODEL, "sort": "-cost"}, "0"),
    ],
)
@pytest.mark.parametrize("view", ["cards", "table"])
def test_cards_are_filtered_and_sorted(query: dict[str, str], names: str, view: str) -> None:
    html = page(takes(), view=view, **query)
    shown = [tag["data-name"] for _, tag in html.tags if "data-clip" in tag]
    assert shown == [f"{name}.jpg" for name in names.split()]


def test_order_holds_over_pages_and_batches() -> None:
    def batch(first: int) -> tuple[BatchStatus, CardList]:
        status = BatchStatus("batch", first, "gs://videos/a.jsonl", is_over=True)
        lines = ({"outcome": "landed", "cost_usd": n % 977, "image": f"{n}.jpg"} for n in range(first, 10_000, 2))
        return status, CardList.of_lines(status, map(json.dumps, lines))

    run = RunView([], [batch(0), batch(1)])
    costs = []
    for number in (1, 2, 3, 400):
        shown, total = run.page(PageQuery("d", "r", page=number, sort="-cost"))
        assert (len(shown), total) == (PAGE_SIZE, 10_000)
        costs.append([card.cost_usd for card in shown])
    expected = sorted((n % 977 for n in range(10_000)), reverse=True)
    assert costs[0] + costs[1] + costs[2] == expected[: 3 * PAGE_SIZE]
    assert costs[3] == expected[399 * PAGE_SIZE : 400 * PAGE_SIZE]


def test_table_has_a_sortable_column_for_each_fact() -> None:
    html = page(takes(), view="table", sort="cost", verdict="good")
    assert html.all("li") == []
    heads = [tag.get("aria-sort") for tag in html.all("th") if tag.get("scope") == "col"]
    assert [head for head in heads if head] == ["ascending"]
    sorts = [parse_qs(urlsplit(tag["href"] or "").query) for tag in html.all("a") if tag.get("data-key") == "sort"]
    assert [query["sort"] for query in sorts] == [
        ["name"],
        ["state"],
        ["model"],
        ["checks"],
        ["-cost"],
        ["time"],
    ]
    assert {(query["view"][0], query["verdict"][0]) for query in sorts} == {("table", "good")}


def test_form_keeps_the_view_and_shows_what_is_chosen() -> None:
    html = page(takes(), view="table", state="landed", model=OTHER_MODEL, cost=0.5, sort="-cost")
    hidden = {(tag["name"], tag["value"]) for tag in html.all("input") if tag.get("type") == "hidden"}
    assert hidden == {("run_id", "run+1"), ("view", "table"), ("state", "landed")}
    assert [tag["value"] for tag in html.all("option") if "selected" in tag] == [OTHER_MODEL, "", "-cost"]
    assert [tag["value"] for tag in html.all("input") if tag.get("name") in ("cost", "seconds")] == [
        "0.5",
        "",
    ]


def test_video_has_a_download_link_and_its_poster_frame() -> None:
    with_poster = landed(1, facts={"poster": "1.poster.jpg"})
    html = page(cards_of([submitted(0), landed(0), submitted(1), with_poster]))
    assert [tag.get("poster", "").partition("?")[0] for tag in html.all("video")] == ["", "poster"]
    downloads = [tag["href"] or "" for tag in html.all("a") if "download" in tag]
    assert [(link.partition("?")[0], parse_qs(link)["download"]) for link in downloads] == [("video", ["1"])] * 2


def test_paid_requests_that_will_not_land_are_announced() -> None:
    html = page(cards_of([submitted(0), submitted(1), waited(1), landed(2)], run_is_over=True), is_over=True)
    (alarm,) = html.of_class("alarm")
    assert alarm["role"] == "alert"
    assert "2 requests are paid for, and the video is not in the bucket." in html.words
    assert "1 landed, 2 paid but not landed" in html.words
    assert page(landed_videos(2)).of_class("alarm") == []


def test_submits_that_may_have_been_bought_are_announced() -> None:
    html = page(cards_of([failed(kind="WanUnknownSubmissionError", request=None)]))
    assert "1 request may have been bought" in html.words


def test_version_changes_with_everything_the_page_shows() -> None:
    steps = [
        cards_of([], [RunTask("submit", 0, "running")]),
        cards_of([submitted()]),
        cards_of([submitted(), waited(), landed()]),
        cards_of([submitted(), failed()]),
    ]
    versions = [RunView(cards).version for cards in steps]
    assert len(set(versions)) == len(versions)
    assert versions[0] == RunView(cards_of([], [RunTask("submit", 0, "deferred")])).version
    assert versions[0] != RunView(steps[0], is_over=True).version
