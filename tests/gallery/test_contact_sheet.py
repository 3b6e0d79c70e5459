# SPDX-License-Identifier: Apache-2.0
"""The contact sheet, written next to the videos, into a bucket of the sandbox."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_wan.gallery.pages import (
    card_of_record,
    cards_without_video,
    relative_address,
    render_contact_sheet,
)
from airflow_provider_wan.gallery.run_cards import cards_of
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.gallery.entries import MODEL, landed, submitted
from tests.gallery.test_pages import HOSTILE, Tags

if TYPE_CHECKING:
    from tests.sandboxes import Bucket


class TaskInstance:
    dag_id, run_id, task_id, map_index = "d", "r", "t", -1

    def xcom_push(self, key: str, value: Any) -> None:
        """Ignore it."""


OTHER_MODEL = "wan-ai/wan-2-5/image-to-video"
CONTEXT: dict[str, Any] = {"ti": TaskInstance(), "outlet_events": {}}


def land(prompt: str, object_name: str, image: str, **more: Any) -> None:
    request = WanSubmitOperator(
        task_id="submit", prompt=prompt, img_url=image, check_image=False, durable=False, **more
    ).execute(CONTEXT)
    WanToGCSOperator(task_id="land", request={**request}, bucket_name="videos", object_name=object_name).execute(
        CONTEXT
    )


def sheet(bucket: Bucket, name: str) -> Tags:
    """Return what is shown without a script: the page without its table."""
    return Tags(bucket.read(name).decode().partition('data-view="table"')[0])


@pytest.fixture
def image(bucket: Bucket) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (800, 600), "teal").save(file, "PNG")
    bucket.client.bucket("images").blob("teal.png").upload_from_string(file.getvalue(), content_type="image/png")
    return f"{bucket.sandbox.bucket_url}/images/teal.png"


def test_page_is_written_beside_the_videos_and_links_to_them(bucket: Bucket, image: str) -> None:
    land("a wave", "2026/01/first take.mp4", image)
    land(HOSTILE, "2026/01/more/second.mp4", image)
    land("elsewhere", "2025/12/third.mp4", image)

    made = WanContactSheetOperator(task_id="sheet", bucket_name="videos", prefix="2026/01/").execute(CONTEXT)

    assert made == {"uri": "gs://videos/2026/01/index.html", "videos": 2}
    html = sheet(bucket, "2026/01/index.html")
    assert {video["src"] for video in html.all("video")} == {"./first%20take.mp4", "./more/second.mp4"}
    assert {video["preload"] for video in html.all("video")} == {"none"}
    assert HOSTILE in html.text
    assert (len(html.all("script")), html.all("script")[0].get("src")) == (1, None)
    pictures = [picture["src"] or "" for picture in html.all("img")]
    assert len(pictures) == 2
    assert all(one.startswith("data:image/jpeg;base64,") and len(one) < 20_000 for one in pictures)
    assert bucket.client.bucket("videos").get_blob("2026/01/index.html").content_type.startswith("text/html")


def test_videos_of_several_models_are_side_by_side(bucket: Bucket, image: str) -> None:
    land("a wave", "first/teal.mp4", image)
    land("a wave", "second/teal.mp4", image, model_id=OTHER_MODEL)
    line = {"image": "gs://images/red.png", "outcome": "refused", "error": "it is too small"}
    bucket.put("_manifests/a.jsonl", json.dumps(line).encode(), "application/x-ndjson")
    manifest = {"manifest": "gs://videos/_manifests/a.jsonl", "model_id": OTHER_MODEL}

    WanContactSheetOperator(task_id="sheet", bucket_name="videos", manifest=[manifest]).execute(CONTEXT)

    html = sheet(bucket, "index.html")
    assert (len(html.all("tr")), len(html.all("td")), html.all("li")) == (1 + 2, 2 * 2, [])
    assert {video["src"] for video in html.all("video")} == {"./first/teal.mp4", "./second/teal.mp4"}
    assert f"{MODEL} 1 of 1 usable, 0.20 USD, 0.20 USD per usable video" in html.words
    assert f"{OTHER_MODEL} 1 of 2 usable" in html.words
    assert html.words.count("not made with this model") == 1


def test_page_is_replaced_and_needs_no_images(bucket: Bucket, image: str) -> None:
    land("a wave", "a.mp4", image)
    bucket.client.bucket("images").blob("teal.png").delete()
    for _ in range(2):
        made = WanContactSheetOperator(task_id="sheet", bucket_name="videos").execute(CONTEXT)
    assert made == {"uri": "gs://videos/index.html", "videos": 1}
    assert sheet(bucket, "index.html").all("img") == []


def test_prefix_without_videos_gives_an_empty_page(bucket: Bucket) -> None:
    bucket.put("2026/notes.json", b"{}", "application/json")
    made = WanContactSheetOperator(task_id="sheet", bucket_name="videos", prefix="2026").execute(CONTEXT)
    assert made["videos"] == 0


def test_images_of_a_batch_without_a_video_are_shown_with_the_reason(bucket: Bucket, image: str) -> None:
    land("a wave", "2026/a.mp4", image)
    lines = [
        {"image": image, "outcome": "landed", "uri": "gs://videos/2026/a.mp4", "request_id": "1"},
        {"image": image, "outcome": "refused", "error": "it is too small"},
        {"image": image, "outcome": "failed", "error": HOSTILE, "request_id": "2"},
        {"image": image, "outcome": "left", "error": "the limit came first"},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    bucket.put("_manifests/a.jsonl", body, "application/x-ndjson")
    manifest = "gs://videos/_manifests/a.jsonl"

    for given in (manifest, {"manifest": manifest}, [{"manifest": manifest}], f" {manifest} "):
        made = WanContactSheetOperator(task_id="sheet", bucket_name="videos", prefix="2026", manifest=given).execute(
            CONTEXT
        )

        assert made["videos"] == 1
        html = sheet(bucket, "2026/index.html")
        assert len(html.all("li")) == 4
        assert len(html.all("video")) == 1
        assert len(html.all("img")) == 4
        assert "it is too small" in html.text
        assert HOSTILE in html.text
        assert "1 landed, 1 failed, 1 refused, 1 left undone" in html.text


def test_empty_manifest_parameter_reads_no_manifest(bucket: Bucket) -> None:
    for given in (None, "", "None", {}, [], {"dry_run": True}):
        made = WanContactSheetOperator(task_id="sheet", bucket_name="videos", manifest=given).execute(CONTEXT)
        assert made["videos"] == 0


@pytest.mark.parametrize(
    ("object_name", "page", "address"),
    [
        ("a.mp4", "index.html", "./a.mp4"),
        ("x/a.mp4", "x/index.html", "./a.mp4"),
        ("x/a.mp4", "index.html", "./x/a.mp4"),
        ("x/a.mp4", "y/index.html", "./../x/a.mp4"),
        ("http:a?b#c%.mp4", "index.html", "./http%3Aa%3Fb%23c%25.mp4"),
    ],
)
def test_links_to_videos_are_relative(object_name: str, page: str, address: str) -> None:
    assert relative_address(object_name, page=page) == address


def test_page_of_cards_needs_no_bucket_and_runs_no_other_script() -> None:
    refused = {"image": "b.png", "outcome": "refused", "error": HOSTILE}
    cards = [
        *cards_of([submitted(), landed()]),
        *cards_without_video(json.dumps(refused).encode()),
    ]
    page = render_contact_sheet(cards, title=HOSTILE)
    html = Tags(page)
    assert html.text.count(HOSTILE) == 4  # the title, its heading, and the error as a card and in the table
    assert len(html.all("li")) == 2
    assert len(html.all("script")) == 1
    script = page.partition("<script>")[2].partition("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [tag["content"] or "" for tag in html.all("meta") if tag.get("http-equiv")]
    assert [f"script-src 'sha256-{allowed}'" in policy for policy in policies] == [True]


def test_poster_frame_beside_a_video_is_linked() -> None:
    facts = {"width": 640, "height": 360, "poster": "2026/takes/a b.poster.jpg"}
    video = {"uri": "gs://videos/2026/takes/a b.mp4", "object_name": "2026/takes/a b.mp4", "facts": facts}
    card = card_of_record({"request_id": "r", "videos": [video]}, page="2026/index.html")
    html = Tags(render_contact_sheet([card], title="takes"))
    assert {tag["poster"] for tag in html.all("video")} == {"./takes/a%20b.poster.jpg"}
    assert {tag["src"] for tag in html.all("video")} == {"./takes/a%20b.mp4"}
    assert {tag["href"] for tag in html.all("a") if "download" in tag} == {"./takes/a%20b.mp4"}
