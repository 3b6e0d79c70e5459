# SPDX-License-Identifier: Apache-2.0
"""Submits that the sandbox refuses: inputs by the schema, images by their content."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.tests.api_client import PHOTOS, Client, image_bytes, put_image
from wan_sandbox.server import Sandbox


@pytest.fixture
def looking() -> Iterator[Sandbox]:
    """A sandbox that checks images and encodes nothing."""
    with Sandbox(video_bytes=50_000) as started:
        yield started


@pytest.mark.parametrize(
    ("inputs", "field", "says"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": "  "}, "prompt", "must not be empty"),
        ({"prompt": "x" * 801}, "prompt", "at most 800"),
        ({"prompt": 7}, "prompt", "valid string"),
        ({"img_url": None}, "img_url", "required"),
        ({"negative_prompt": "x" * 501}, "negative_prompt", "at most 500"),
        ({"resolution": "720P"}, "resolution", "'480P', '1080P'"),
        ({"duration": 10}, "duration", "one of 5"),
        ({"duration": "5"}, "duration", "valid integer"),
        ({"prompt_extend": "true"}, "prompt_extend", "valid boolean"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"seed": True}, "seed", "valid integer"),
        ({"promt": "x"}, "promt", "not permitted"),
    ],
)
def test_inputs_are_checked_as_the_schema_says(client: Client, inputs: dict[str, Any], field: str, says: str) -> None:
    answer = client.submit(**inputs)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert says in problem["msg"]
    assert client.sandbox.ledger()["purchases"] == []


def test_all_violations_are_reported_together(client: Client) -> None:
    answer = client.submit(prompt="", duration=6, resolution="4K")
    assert len(answer.json()["detail"]) == 3


@pytest.mark.parametrize("body", ["[]", '"text"', "{", ""])
def test_body_that_is_not_an_object_is_422(client: Client, body: str) -> None:
    url = f"{client.sandbox.url}/v1/models/wan-ai/wan-2-2/image-to-video"
    assert client.session.post(url, data=body, timeout=10).status_code == 422


@pytest.mark.parametrize(
    "inputs",
    [{"resolution": "1080P", "duration": 5, "seed": 3, "prompt_extend": False, "template": "flying"}, {}],
)
def test_good_inputs_pass(client: Client, inputs: dict[str, Any]) -> None:
    client.buy(**inputs)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (image_bytes(400, 359), "at least 360"),
        (image_bytes(2001, 400), "not exceed 2000"),
        (image_bytes(400, 400, mode="RGBA", colour=(1, 2, 3, 4)), "alpha"),
        (image_bytes(400, 400, format="GIF", mode="P"), "it is GIF"),
        (b"<html>not an image</html>", "no image"),
        (b"", "no image"),
        (image_bytes(400, 400)[:300], "no image"),
        (image_bytes(400, 400) + b"\0" * 10_000_000, "smaller than 10 MB"),
    ],
    ids=["short", "long", "alpha", "gif", "html", "empty", "cut", "heavy"],
)
def test_bad_image_is_422_with_the_reason(looking: Sandbox, data: bytes, says: str) -> None:
    url = put_image(looking, "picture", data)
    answer = Client(looking).submit(img_url=url)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", "img_url"]
    assert says in problem["msg"]
    assert looking.ledger()["purchases"] == []


@pytest.mark.parametrize(
    ("width", "height", "format"),
    [(360, 2000, "JPEG"), (2000, 360, "PNG"), (400, 400, "BMP"), (400, 400, "WEBP")],
)
def test_an_image_at_the_bounds_passes(looking: Sandbox, width: int, height: int, format: str) -> None:
    url = put_image(looking, "picture", image_bytes(width, height, format=format))
    Client(looking).buy(img_url=url)


@pytest.mark.parametrize("photo", ["chelsea.jpg", "horse_rgba.png"])
def test_the_two_sample_photographs_that_break_a_rule_are_refused(looking: Sandbox, photo: str) -> None:
    url = put_image(looking, photo, (PHOTOS / photo).read_bytes())
    assert Client(looking).submit(img_url=url).status_code == 422


def test_an_address_that_does_not_answer_is_422(looking: Sandbox) -> None:
    client = Client(looking)
    for url in (
        f"{looking.bucket_url}/pictures/none.jpg",
        "http://127.0.0.1:1/a.jpg",
        "no address",
        "ftp://a/b",
    ):
        answer = client.submit(img_url=url)
        assert answer.status_code == 422
        assert "cannot be fetched" in answer.json()["detail"][0]["msg"]


def test_image_in_a_data_uri_is_checked_too(looking: Sandbox) -> None:
    client = Client(looking)
    good = base64.b64encode(image_bytes()).decode()
    client.buy(img_url=f"data:image/png;base64,{good}")
    small = base64.b64encode(image_bytes(10, 10)).decode()
    assert client.submit(img_url=f"data:image/png;base64,{small}").status_code == 422
    assert client.submit(img_url="data:image/png;base64,%%%").status_code == 422


class _PictureHost:
    """A host of one image that records its requests, and answers 304 to a known ETag."""

    def __init__(self) -> None:
        host = self
        self.asked: list[dict[str, str]] = []
        self.data, self.etag = image_bytes(), '"1"'

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append({name.lower(): value for name, value in self.headers.items()})
                known = self.headers.get("If-None-Match") == host.etag
                self.send_response(304 if known else 200)
                self.send_header("ETag", host.etag)
                self.send_header("Content-Length", "0" if known else str(len(host.data)))
                self.end_headers()
                self.wfile.write(b"" if known else host.data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a.png"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def picture_host() -> Iterator[_PictureHost]:
    host = _PictureHost()
    yield host
    host.server.shutdown()
    host.server.server_close()


def test_an_image_is_fetched_without_any_credential(looking: Sandbox, picture_host: _PictureHost) -> None:
    Client(looking).buy(img_url=picture_host.url)
    [headers] = picture_host.asked
    assert not {"authorization", "cookie", "proxy-authorization"} & set(headers)


def test_known_image_is_not_fetched_again_and_a_changed_one_is_checked_again(
    looking: Sandbox, picture_host: _PictureHost
) -> None:
    client = Client(looking)
    client.buy(img_url=picture_host.url)
    client.buy(img_url=picture_host.url)
    assert [headers.get("if-none-match") for headers in picture_host.asked] == [None, '"1"']
    picture_host.data, picture_host.etag = image_bytes(100, 100), '"2"'
    for _ in range(2):
        assert client.submit(img_url=picture_host.url).status_code == 422
    assert [headers.get("if-none-match") for headers in picture_host.asked[2:]] == ['"1"', '"2"']
