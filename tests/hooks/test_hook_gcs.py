# SPDX-License-Identifier: Apache-2.0
"""The Cloud Storage client: its calls, its timeouts, and the conversion of its errors."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import PreconditionFailed

from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from airflow_provider_wan.hooks import gcs
from airflow_provider_wan.hooks.gcs import check_object_name, split_gs_uri, storage_client, storage_errors
from tests.raw_servers import Proxy, RawServer, always, closed_port, drip, read_head, reply
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

NOT_FOUND = reply(
    b'{"error": {"code": 404, "message": "No such object"}}', "404 Not Found", Content_Type="application/json"
)


def test_storage_client_makes_no_side_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[str] = []
    with RawServer(always(NOT_FOUND, heads=heads)) as wire:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", wire.url)
        before = set(threading.enumerate())
        client = storage_client()
        assert client.bucket("videos").get_blob("a.mp4") is None
        for thread in set(threading.enumerate()) - before:
            if "background" in thread.name:
                thread.join(10)
    assert [head.split(" ")[1].split("?")[0] for head in heads] == ["/storage/v1/b/videos/o/a.mp4"]


def test_permission_on_the_bucket_itself_is_not_needed(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("bucket.metadata", "forbidden")
    blob = bucket.client.bucket(bucket.name).blob("a.txt")
    blob.upload_from_string(b"here", if_generation_match=0)
    assert blob.download_as_bytes() == b"here"
    assert bucket.calls() == {"bucket.upload": 1, "bucket.get": 1}


def test_slow_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sock: Any) -> None:
        read_head(sock)
        drip(sock, wire.over, b"HTTP/1.1 200 OK\r\nX: y")

    with RawServer(answer) as wire:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", wire.url)
        with pytest.raises(WanStorageError), storage_errors("Reading"):
            storage_client().bucket("videos").get_blob("a", timeout=(1, 0.3), retry=None)


def test_the_proxy_of_the_environment_is_used(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert storage_client().bucket(bucket.name).get_blob("a") is None
        assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("fault", "params", "said", "retry_helps"),
    [
        ("forbidden", {}, "is not allowed.*roles/storage.objectUser", False),
        ("status", {"status": 404}, "no such bucket or object", True),
        ("status", {"status": 400}, "failed", True),
        ("status", {"status": 500}, "failed", True),
        ("html", {}, "failed", True),
        ("cut_json", {}, "failed", True),
        ("reset", {}, "failed", True),
        ("quota", {}, "failed", True),
    ],
)
def test_each_storage_error_becomes_our_own(
    bucket: Bucket,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    params: dict[str, Any],
    said: str,
    retry_helps: bool,
) -> None:
    monkeypatch.setattr(gcs, "RETRY_FOR_S", 0.2)
    sandbox.add_fault("bucket.list", fault, **params)
    with pytest.raises(WanStorageError, match=said) as caught, storage_errors("Listing", request_id="r"):
        list(bucket.client.list_blobs(bucket.name, **gcs.call_limits()))
    assert str(caught.value).startswith("Listing ")
    assert "http" not in str(caught.value)
    assert (caught.value.request_id, caught.value.retry_helps) == ("r", retry_helps)


def test_missing_bucket_is_named(sandbox: Sandbox) -> None:
    blob = storage_client().bucket("no-such-bucket").blob("a.mp4")
    with pytest.raises(WanStorageError) as caught, storage_errors("Writing gs://no-such-bucket/a.mp4"):
        blob.upload_from_string(b"video")
    text = str(caught.value)
    assert text.startswith("Writing gs://no-such-bucket/a.mp4 failed: no such bucket or object. ")
    assert text.endswith(" Check the names.")
    assert not set("{}<>") & set(text)
    assert not caught.value.retry_helps


@pytest.mark.parametrize("reason", ["rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"])
def test_403_for_too_many_requests_is_retried(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    error = {"code": 403, "message": "slow down", "errors": [{"reason": reason, "message": "slow down"}]}
    body = json.dumps({"error": error}).encode()
    with RawServer(always(reply(body, "403 Forbidden", Content_Type="application/json"))) as wire:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", wire.url)
        with pytest.raises(WanStorageError) as caught, storage_errors("Reading"):
            storage_client().bucket("videos").get_blob("a", timeout=5)
    assert caught.value.retry_helps


def test_bucket_outage_is_logged_once_a_minute(
    bucket: Bucket, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("behind-an-outage", b"here")
    # Threads of earlier tests (the gallery's) may still call the bucket, and log: they get no fault, and don't count.
    sandbox.add_fault("bucket.metadata", "status", status=503, count=2, object_contains="behind-an-outage")
    found = bucket.client.bucket(bucket.name).get_blob("behind-an-outage", **gcs.call_limits())
    assert found is not None  # after two tries that failed
    own = [line for line in caplog.records if line.thread == threading.get_ident()]
    logged = [line.getMessage() for line in own if line.name == gcs.__name__]
    assert len(logged) == 1
    assert "Trying again for up to 120 s" in logged[0]


def test_unreachable_bucket_raises_our_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(WanStorageError, match="Reading failed"), storage_errors("Reading"):
        storage_client().bucket("videos").get_blob("a", timeout=1, retry=None)


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(WanStorageError, match="Finding Google credentials failed"):
        storage_client()


def test_the_help_page_about_missing_credentials_keeps_its_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(WanStorageError, match=r"see https://cloud.google.com/docs/authentication/\S+"):
        storage_client()


def test_a_google_connection_needs_the_google_provider() -> None:
    pytest.importorskip("airflow.providers.common.compat")
    try:
        import airflow.providers.google  # noqa: F401
    except ImportError:
        with pytest.raises(WanInputError, match=r"airflow-provider-wan\[google\]"):
            storage_client("google_cloud_default")


@pytest.mark.parametrize(
    ("uri", "needs_object", "parts"),
    [
        ("gs://videos", False, ("videos", "")),
        ("gs://videos/", False, ("videos", "")),
        ("gs://my.bucket_1-a/pre/fix/", False, ("my.bucket_1-a", "pre/fix/")),
        ("gs://videos/ä b.mp4", True, ("videos", "ä b.mp4")),
    ],
)
def test_gs_uri_is_split(uri: str, needs_object: bool, parts: tuple[str, str]) -> None:
    assert split_gs_uri(uri, name="journal", needs_object=needs_object) == parts


@pytest.mark.parametrize(
    ("uri", "needs_object"),
    [
        ("videos/a", False),
        ("s3://videos/a", False),
        ("gs://", False),
        ("gs:///a", False),
        ("gs://Videos/a", False),
        ("gs://vi deos/a", False),
        ("gs://-videos/a", False),
        ("gs://v", False),
        ("gs://videos\n/a", False),
        ("gs://videos?x=1/a", False),
        ("gs://user@videos/a", False),
        ("gs://videos", True),
        ("gs://videos/../a", False),
        ("gs://videos/a\x07b", False),
        ("gs://videos//a", False),
    ],
)
def test_invalid_gs_uri_is_refused_by_the_name_of_its_parameter(uri: str, needs_object: bool) -> None:
    with pytest.raises(WanInputError, match="journal="):
        split_gs_uri(uri, name="journal", needs_object=needs_object)


@pytest.mark.parametrize(
    "name", ["a", "a/b.mp4", "tägl ich/ü.mp4", "a..b", "...", "x" * 1024, "名前.mp4", "a/", "a#?*[]"]
)
def test_object_name_may_have_any_printable_characters(name: str) -> None:
    assert check_object_name(name) == name


@pytest.mark.parametrize("size_bytes", [0, 3, 300_000, 9 * 2**20])
def test_an_uploaded_file_is_the_object(bucket: Bucket, size_bytes: int) -> None:
    data = (b"0123456789abcde\n" * (size_bytes // 16 + 1))[:size_bytes]
    blob = bucket.client.bucket(bucket.name).blob("folder/a b.bin")
    blob.metadata = {"key": "\u00e9"}
    file = io.BytesIO(data)
    file.seek(0, io.SEEK_END)
    gcs.upload(blob, file, size_bytes=size_bytes, content_type="video/mp4", if_generation_match=0)
    found = bucket.client.bucket(bucket.name).get_blob("folder/a b.bin")
    assert found is not None
    assert (found.download_as_bytes(), found.content_type) == (data, "video/mp4")
    assert (found.metadata, found.generation) == ({"key": "\u00e9"}, blob.generation)
    with pytest.raises(PreconditionFailed):
        gcs.upload(blob, b"other", content_type="video/mp4", if_generation_match=0)


def test_an_upload_is_sent_again_whole_after_an_outage(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("bucket.upload", "quota", count=2)
    blob = bucket.client.bucket(bucket.name).blob("a")
    gcs.upload(blob, io.BytesIO(b"video"), size_bytes=5, content_type="video/mp4")
    assert bucket.client.bucket(bucket.name).blob("a").download_as_bytes() == b"video"


def test_a_netrc_does_not_replace_the_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    heads: list[str] = []
    with RawServer(always(NOT_FOUND, heads=heads)) as wire:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", wire.url)
        assert storage_client().bucket("videos").get_blob("a.mp4") is None
    assert "Basic" not in heads[0]
