# SPDX-License-Identifier: Apache-2.0
"""The routes of the gallery in Airflow's API server, over HTTP: who may see what, and what a slow host can hold up."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from airflow import plugins_manager
from airflow.providers.common.compat.sdk import BaseOperator
from PIL import Image

from airflow_provider_wan.gallery import OPERATORS
from airflow_provider_wan.gallery.run_cards import Entry, RunTask
from airflow_provider_wan.plugins.gallery import gallery_tab
from tests.gallery.airflow_server import DAG_ID, AirflowServer, write_run
from tests.gallery.entries import landed, refused, request_id, submitted, waited
from tests.gallery.test_pages import Tags

if TYPE_CHECKING:
    from tests.sandboxes import Bucket
    from wan_sandbox.server import Sandbox

VIDEO = bytes(range(256)) * 40


def jpeg(colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(file, "JPEG")
    return file.getvalue()


def run_id() -> str:
    """Return the id of a new run; a plus sign is in those of manual runs."""
    return f"manual__2026-01-15T00:00:00+00:00_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run(airflow: AirflowServer, bucket: Bucket) -> str:
    """A run with a landed video."""
    generation = bucket.put("0.mp4", VIDEO, "video/mp4", **{"wan-request-id": request_id()})
    crc32c = bucket.objects()["0.mp4"]["crc32c"]
    found = run_id()
    write_run(found, [submitted(), waited(), landed(generation=generation, crc32c=crc32c)])
    return found


def test_airflow_loads_the_tab(airflow: AirflowServer) -> None:
    plugins = airflow.as_user("ADMIN").get("/api/v2/plugins").json()["plugins"]
    (view,) = [view for plugin in plugins for view in plugin["external_views"] if view["name"] == "Videos"]
    assert view["destination"] == "dag_run"
    assert not view.get("applies_to")


def test_tags_limit_the_tab_from_airflow_3_4_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WAN__GALLERY_TAGS", "videos, marketing")
    tab = gallery_tab()
    assert tab["applies_to"] == {"dag.tags.name": ["marketing", "videos"]}
    # Airflow 3.4 does not load a tab that is limited by a field that it does not know.
    is_valid = getattr(plugins_manager, "_validate_applies_to", lambda *_: True)
    assert is_valid("wan_gallery", tab, "an external view")


def test_gallery_knows_all_operators_of_this_provider() -> None:
    found = {
        name
        for module in _modules_of("operators", "sensors", "transfers", "decorators")
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseOperator) and value.__module__ == module.__name__
        if not name.startswith("_")
    }
    assert found == OPERATORS


def _modules_of(*packages: str) -> Iterator[ModuleType]:
    for package in map(import_module, (f"airflow_provider_wan.{name}" for name in packages)):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            yield import_module(module.name)


class SlowHost:
    """A web server that answers only after :meth:`release`."""

    def __init__(self) -> None:
        released = self._released = threading.Event()
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                released.wait()
                body = jpeg()
                self.send_response(200)
                self.send_header("Content-Type", "image/jpeg")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def release(self) -> None:
        self._released.set()

    def stop(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def slow_host(sandbox: Sandbox) -> Iterator[SlowHost]:
    host = SlowHost()
    yield host
    host.stop()


def test_only_readers_of_the_xcoms_see_anything(airflow: AirflowServer, run: str) -> None:
    where = {"task_id": "land", "map_index": 0}
    routes = [("videos", {}), ("live", {}), ("video", where), ("image", {**where, "task_id": "submit"})]
    refused_routes = [(401, None), (403, "")]
    for route, query in routes:
        for status, role in refused_routes:
            assert airflow.get(route, run, role=role, **query).status_code == status
        assert airflow.get(route, run, **query).status_code in (200, 404)
    text = Tags(airflow.get("videos", run, role="").text).words
    assert "You may not see the videos of this Dag: that takes permission to read its XComs." in text


def test_videos_of_another_run_or_dag_are_not_found(airflow: AirflowServer, run: str) -> None:
    where = {"task_id": "land", "map_index": 0}
    assert airflow.get("video", run, **where).status_code == 200
    assert airflow.get("video", "other", **where).status_code == 404
    for dag_id in ("another_dag", "~"):
        assert airflow.get("video", run, dag_id=dag_id, **where).status_code == 404
        assert airflow.get("videos", run, dag_id=dag_id).status_code == 404
    assert airflow.get("video", run, **where, index=1).status_code == 404


def test_run_id_with_a_blank_for_its_plus_sign_is_found(airflow: AirflowServer, run: str) -> None:
    assert airflow.get("videos", run.replace("+", " ")).status_code == 200


def test_video_is_passed_on_in_ranges(airflow: AirflowServer, run: str) -> None:
    client = airflow.as_user()
    address = f"/wan/dags/{DAG_ID}/video"
    query = {"run_id": run, "task_id": "land", "map_index": 0}
    whole = client.get(address, params=query)
    part = client.get(address, params=query, headers={"Range": "bytes=100-199"})
    assert (whole.status_code, whole.content) == (200, VIDEO)
    assert (part.status_code, part.content) == (206, VIDEO[100:200])
    assert part.headers["Content-Type"] == "video/mp4"


def test_video_is_saved_under_its_own_name(airflow: AirflowServer, run: str) -> None:
    where = {"task_id": "land", "map_index": 0}
    shown, saved = airflow.get("video", run, **where), airflow.get("video", run, **where, download=1)
    assert shown.headers["Content-Disposition"] == "inline"
    assert saved.headers["Content-Disposition"] == "attachment; filename*=UTF-8''0.mp4"
    assert saved.content == VIDEO


def test_poster_is_the_picture_beside_a_landed_video(airflow: AirflowServer, bucket: Bucket, run: str) -> None:
    where = {"task_id": "land", "map_index": 0}
    assert airflow.get("poster", run, **where).status_code == 404
    bucket.put("0.poster.jpg", jpeg("red"), "image/jpeg", **{"wan-request-id": request_id(9)})
    assert airflow.get("poster", run, **where).status_code == 404
    bucket.put("0.poster.jpg", jpeg(), "image/jpeg", **{"wan-request-id": request_id()})
    answer = airflow.get("poster", run, **where)
    assert (answer.content, answer.headers["Content-Type"]) == (jpeg(), "image/jpeg")
    assert airflow.get("poster", run, role="", **where).status_code == 403
    generation = bucket.put("secret.mp4", b"not yours", "video/mp4")
    bucket.put("secret.poster.jpg", jpeg(), "image/jpeg", **{"wan-request-id": request_id()})
    other = run_id()
    write_run(other, [landed(uri="gs://videos/secret.mp4", generation=generation)])
    assert airflow.get("poster", other, **where).status_code == 404


def test_empty_fields_of_the_form_select_everything(airflow: AirflowServer, run: str) -> None:
    empty = dict.fromkeys(("name", "model", "verdict", "cost", "seconds", "sort", "view"), "")
    answer = airflow.get("videos", run, **empty)
    assert answer.status_code == 200
    assert len(Tags(answer.text).all("li")) == 1
    assert airflow.get("videos", run, cost="-1").status_code == 422


def test_object_that_is_not_the_landed_video_is_not_given(airflow: AirflowServer, bucket: Bucket) -> None:
    generation = bucket.put("secret.mp4", b"not yours", "video/mp4")
    found = run_id()
    write_run(found, [landed(uri="gs://videos/secret.mp4", generation=generation)])
    assert airflow.get("video", found, task_id="land", map_index=0).status_code == 404


def test_page_allows_no_foreign_script(airflow: AirflowServer, run: str) -> None:
    answer = airflow.get("videos", run)
    policy = answer.headers["Content-Security-Policy"]
    (script,) = Tags(answer.text).all("script")
    assert f"script-src 'nonce-{script['nonce']}'" in policy
    assert "default-src 'none'" in policy
    assert answer.headers["Cache-Control"] == "private, no-store"


def test_search_finds_images_of_tasks_that_have_returned_nothing_yet(airflow: AirflowServer) -> None:
    found = run_id()
    tasks = [RunTask(f"submit_{name}", -1, "running") for name in ("ada", "bob")]
    fields = {task.task_id: {"img_url": f"https://in.example.com/{task.task_id[7:]}.jpg?key=1"} for task in tasks}
    write_run(found, [], tasks, rendered=fields)
    page = Tags(airflow.get("videos", found, name="ADA").text)
    assert len(page.all("li")) == 1
    assert "1 with “ADA” in the name" in page.words
    assert "key=1" not in page.text


def test_image_of_any_model_is_found_in_the_fields_of_its_task(airflow: AirflowServer) -> None:
    found = run_id()
    address = "https://in.example.com/ada.jpg"
    fields = {
        "by_field": {"image": address, "img_url": None, "model_id": "a/one"},
        "by_input": {"image": "None", "inputs": {"start_image_url": address}, "model_id": "a/two"},
        "in_a_bucket": {"image": "gs://in/ada.jpg?1"},
    }
    write_run(found, [], [RunTask(name, -1, "running") for name in fields], rendered=fields)
    page = Tags(airflow.get("videos", found).text)
    names = ["ada.jpg", "ada.jpg", "ada.jpg?1"]
    assert [tag["alt"] for tag in page.all("img")] == [f"Source image {name}" for name in names]
    assert "model a/one" in page.words
    assert "model a/two" in page.words


def test_ended_run_announces_paid_requests_without_a_landing(airflow: AirflowServer) -> None:
    found = run_id()
    skipped = [
        RunTask("wait", -1, "skipped", "WanRequestSensor"),
        RunTask("land", -1, "skipped", "WanToGCSOperator"),
    ]
    write_run(found, [submitted(0), refused(1)], skipped, state="success")
    page = Tags(airflow.get("videos", found).text)
    assert len(page.of_class("alarm")) == 1
    assert "1 refused" in page.words
    assert "1 request is paid for, and the video is not in the bucket." in page.words


def test_images_of_a_slow_host_hold_up_nothing(airflow: AirflowServer, slow_host: SlowHost) -> None:
    found, count = run_id(), 200
    write_run(found, [submitted(n, image=f"{slow_host.url}/{n}.jpg") for n in range(count)])

    async def ask() -> tuple[list[int], int]:
        from httpx import ASGITransport, AsyncClient

        transport = ASGITransport(app=airflow.app)
        login = airflow.login("VIEWER")
        async with AsyncClient(transport=transport, base_url="http://airflow", headers=login) as client:
            address = f"/wan/dags/{DAG_ID}/image"
            query = {"run_id": found, "task_id": "submit"}
            pictures = [
                asyncio.create_task(client.get(address, params={**query, "map_index": n}, timeout=600))
                for n in range(count)
            ]
            # A route of Airflow's own that runs in the shared threads.
            health = await client.get("/api/v2/monitor/health", timeout=600)
            answers = await asyncio.gather(*pictures)
            return [answer.status_code for answer in answers], health.status_code

    # The host has not answered anything yet.
    statuses, health = asyncio.run(asyncio.wait_for(ask(), 600))
    assert (set(statuses), health) == ({503}, 200)
    assert 0 < len(slow_host.asked) <= 4

    slow_host.release()
    answer = airflow.get("image", found, task_id="submit", map_index=0)
    while answer.status_code == 503:
        answer = airflow.get("image", found, task_id="submit", map_index=0)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")


def test_picture_of_one_connection_is_not_given_to_another(
    airflow: AirflowServer, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.client.bucket("images").blob("private.jpg").upload_from_string(jpeg(), content_type="image/jpeg")
    address = f"{bucket.sandbox.bucket_url}/images/private.jpg"  # a private address
    monkeypatch.setenv("AIRFLOW_CONN_STRICT", json.dumps({"conn_type": "wan", "password": "t"}))
    ours, theirs = run_id(), run_id()
    for found, conn_id in ((ours, "wan_default"), (theirs, "strict")):
        fields = {"submit": {"wan_conn_id": conn_id, "gcp_conn_id": None}}
        write_run(found, [submitted(image=address)], rendered=fields)

    def ask(found: str) -> int:
        answer = airflow.get("image", found, task_id="submit", map_index=0)
        while answer.status_code == 503:
            answer = airflow.get("image", found, task_id="submit", map_index=0)
        status: int = answer.status_code
        return status

    assert [ask(theirs), ask(ours), ask(theirs)] == [404, 200, 404]


def test_batch_of_100_000_images_is_read_once_for_all_viewers(airflow: AirflowServer, bucket: Bucket) -> None:
    line = '{"image":"gs://in/%06d.jpg","outcome":"%s","fingerprint":"' + "ab" * 32 + '"}\n'
    body = "".join(line % (n, "failed" if n % 25_000 == 9 else "to_do") for n in range(100_000)).encode()
    bucket.put("_journal/_notes/a.jsonl", body, "application/x-ndjson")
    found = run_id()
    progress = {"standing": "gs://videos/_journal/_notes/a.jsonl", "journal": "gs://videos/_journal"}
    write_run(
        found,
        [Entry("batch", -1, "progress", progress)],
        [RunTask("batch", -1, "deferred", "WanBatchOperator")],
    )
    before = bucket.calls()
    first = Tags(airflow.get("videos", found).text)
    failed = Tags(airflow.get("videos", found, state="failed").text)
    last = Tags(airflow.get("videos", found, page=4167).text)
    searched = Tags(airflow.get("videos", found, name="012345").text)
    assert "all (100,000)" in first.words
    assert "page 1 of 4167" in first.words
    assert [len(page.all("li")) for page in (first, failed, last, searched)] == [24, 4, 16, 1]
    assert bucket.calls()["bucket.get"] - before.get("bucket.get", 0) == 1
