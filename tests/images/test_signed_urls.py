# SPDX-License-Identifier: Apache-2.0
"""Signed links: with a generated key, and through a local IAM server; the bucket emulator accepts them."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.auth import credentials as google_credentials
from google.auth import iam, impersonated_credentials
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.oauth2 import service_account

from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.images.staging import ObjectLinks
from airflow_provider_wan.model_api.schema import LazyModel
from airflow_provider_wan.utils.images import image_sources
from tests.image_samples import encoded, photo
from tests.raw_servers import RawServer, read_request, reply
from tests.sandboxes import MODEL, Bucket

EMAIL = "signer@example-project.iam.gserviceaccount.com"
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def account(key: rsa.RSAPrivateKey) -> Any:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return service_account.Credentials.from_service_account_info(
        {
            "client_email": EMAIL,
            "private_key": pem.decode(),
            "token_uri": "https://oauth2.googleapis.com/token",
        }
    )


def client_with(credentials: Any, bucket: Bucket) -> storage.Client:
    return storage.Client(
        project="p", credentials=credentials, client_options={"api_endpoint": bucket.sandbox.bucket_url}
    )


def is_signed_by(key: rsa.RSAPrivateKey, link: str) -> bool:
    """Check a V4 signature by the rules of Cloud Storage, written down here once more."""
    parts = urlsplit(link)
    query, _, signature = parts.query.partition("&X-Goog-Signature=")
    names = parse_qs(query)
    date, scope = names["X-Goog-Date"][0], names["X-Goog-Credential"][0].partition("/")[2]
    request = "\n".join(("GET", parts.path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD"))
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(("GOOG4-RSA-SHA256", date, scope, digest))
    key.public_key().verify(bytes.fromhex(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return True


def test_a_key_signs_a_link_that_anybody_can_read(bucket: Bucket, key: rsa.RSAPrivateKey) -> None:
    bucket.sandbox.bucket_control("buckets", {"name": "private", "public": False})
    name = "my photos/ä 1.jpg"
    bucket.client.bucket("private").blob(name).upload_from_string(b"picture")
    link = ObjectLinks(client_with(account(key), bucket), lifetime_s=HOUR_S).link_to("private", name)
    assert is_signed_by(key, link)
    assert unquote(urlsplit(link).path) == f"/private/{name}"
    assert parse_qs(urlsplit(link).query)["X-Goog-Expires"] == ["3600"]
    assert requests.get(link, timeout=10).content == b"picture"
    assert requests.get(link.partition("?")[0], timeout=10).status_code == 403


@pytest.mark.parametrize("lifetime_s", [7 * 24 * HOUR_S + 1, 0, -5])
def test_a_key_signs_for_seven_days_at_most(lifetime_s: float, bucket: Bucket, key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(WanInputError, match="at most 168"):
        ObjectLinks(client_with(account(key), bucket), lifetime_s=lifetime_s).link_to("videos", "a.jpg")


class Iam:
    """Google's signBlob, with a key of ours."""

    def __init__(self, key: rsa.RSAPrivateKey, status: str = "200 OK") -> None:
        self.key = key
        self.status = status
        self.asked: list[str] = []

    def __call__(self, sock: socket.socket) -> None:
        head, _, body = read_request(sock).partition(b"\r\n\r\n")
        self.asked.append(head.decode().splitlines()[0])
        payload = base64.b64decode(json.loads(body)["payload"])
        signature = self.key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        signed = {"keyId": "1", "signedBlob": base64.b64encode(signature).decode()}
        sock.sendall(reply(json.dumps(signed).encode(), self.status, Content_Type="application/json"))


class Machine(google_credentials.Credentials):
    """Credentials as those of a virtual machine: whose they are is known after a refresh, and they have no key."""

    def __init__(self) -> None:
        super().__init__()
        self.service_account_email = "default"
        self.scopes: tuple[str, ...] = ()
        self.refreshed: list[str] = []

    def with_scopes(self, scopes: Any, default_scopes: Any = None) -> Machine:
        scoped = Machine()
        scoped.scopes = tuple(scopes)
        scoped.refreshed = self.refreshed
        return scoped

    def refresh(self, request: Any) -> None:
        assert self.scopes == ("https://www.googleapis.com/auth/cloud-platform",)
        self.refreshed.append("once more")
        self.token = "machine-token"
        self.service_account_email = EMAIL


@pytest.fixture
def iam_url(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(server: RawServer) -> None:
        monkeypatch.setattr(iam, "_IAM_SIGN_ENDPOINT", server.url + "/v1/{}:signBlob")

    return use


def test_a_machine_without_a_key_signs_through_iam(bucket: Bucket, key: rsa.RSAPrivateKey, iam_url: Any) -> None:
    answer = Iam(key)
    with RawServer(answer) as server:
        iam_url(server)
        links = ObjectLinks(client_with(Machine(), bucket), lifetime_s=12 * HOUR_S)
        assert is_signed_by(key, links.link_to("videos", "a.jpg"))
    assert answer.asked == [f"POST /v1/{EMAIL}:signBlob HTTP/1.1"]


def test_an_impersonated_account_signs_through_iam(bucket: Bucket, key: rsa.RSAPrivateKey, iam_url: Any) -> None:
    source = Machine().with_scopes(("https://www.googleapis.com/auth/cloud-platform",))
    source.token = "machine-token"
    acting = impersonated_credentials.Credentials(
        source_credentials=source, target_principal=EMAIL, target_scopes=["scope"]
    )
    with RawServer(Iam(key)) as server:
        iam_url(server)
        assert is_signed_by(key, ObjectLinks(client_with(acting, bucket)).link_to("videos", "a.jpg"))
        with pytest.raises(WanInputError, match="signed through IAM works for at most 12"):
            ObjectLinks(client_with(acting, bucket), lifetime_s=13 * HOUR_S).link_to("videos", "a.jpg")


def test_refusal_by_iam_is_reported(bucket: Bucket, key: rsa.RSAPrivateKey, iam_url: Any) -> None:
    with RawServer(Iam(key, "403 Forbidden")) as server:
        iam_url(server)
        with pytest.raises(WanStorageError, match=r"Signing a link to gs://videos/a\.jpg failed"):
            ObjectLinks(client_with(Machine(), bucket)).link_to("videos", "a.jpg")


def test_user_credentials_cannot_sign_and_the_error_says_what_to_do(bucket: Bucket) -> None:
    from google.oauth2.credentials import Credentials

    person = Credentials(token="t", refresh_token="r", client_id="c", client_secret="s")  # type: ignore[no-untyped-call]
    with pytest.raises(WanInputError, match="impersonation_chain="):
        ObjectLinks(client_with(person, bucket)).link_to("videos", "a.jpg")


def test_links_without_credentials_point_only_to_an_emulator(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_with(AnonymousCredentials(), bucket)
    assert ObjectLinks(client).link_to("videos", "a b.jpg") == f"{bucket.sandbox.bucket_url}/videos/a%20b.jpg"
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(WanInputError, match="no Google credentials"):
        ObjectLinks(client).link_to("videos", "a.jpg")


def test_a_wait_longer_than_the_link_is_refused_before_anything_is_opened() -> None:
    def make(link_lifetime: timedelta | None, waits_for_s: float) -> float:
        task: Any = SimpleNamespace(staging=None, background="white", too_small="upscale", log=None)
        sources = image_sources(task, None, LazyModel(MODEL), link_lifetime=link_lifetime, waits_for_s=waits_for_s)
        return sources.options.link_lifetime_s

    assert make(None, 6 * HOUR_S) == 12 * HOUR_S
    assert make(None, 24 * HOUR_S) == 24 * HOUR_S
    assert make(timedelta(hours=1), 0) == HOUR_S
    with pytest.raises(WanInputError, match="waits for up to 6 hours"):
        make(timedelta(hours=1), 6 * HOUR_S)


def test_all_links_of_a_task_are_signed_with_one_token(bucket: Bucket, key: rsa.RSAPrivateKey, iam_url: Any) -> None:
    machine = Machine()
    client = client_with(machine, bucket)
    client._http_internal = requests.Session()  # reads go to the emulator, which asks for no token
    sources = ImageSources(LazyModel(MODEL), lambda: client, logging.getLogger(__name__))
    for name in "abc":
        bucket.put(f"{name}.jpg", encoded(photo(640, 480), "JPEG"))
    with RawServer(Iam(key)) as server:
        iam_url(server)
        links = [sources.open(f"gs://videos/{name}.jpg").addresses()["img_url"] for name in "abc"]
    assert all(is_signed_by(key, link) for link in links)
    assert len(machine.refreshed) == 1


def test_record_of_a_signed_image_has_no_signature(bucket: Bucket, key: rsa.RSAPrivateKey) -> None:
    bucket.put("a.jpg", encoded(photo(640, 480), "JPEG"))
    signing = client_with(account(key), bucket)
    signing._credentials.token = "t"  # reads go to the emulator, which asks for none
    signing._credentials.refresh = lambda request: None
    signing._http_internal = requests.Session()
    sources = ImageSources(LazyModel(MODEL), lambda: signing, logging.getLogger(__name__))
    row = {"image": "gs://videos/a.jpg", "prompt": "waves"}
    spec = sources.open(row).spec(validates=True)
    assert "X-Goog-Signature" in spec.make_inputs()["img_url"]
    assert "X-Goog" not in repr(spec) + json.dumps(dict(spec.recorded_inputs)) + str(spec.image)
