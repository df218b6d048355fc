"""What is served as it is: small, cacheable, and for other origins only where it is meant for them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import tomllib
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from broker.settings import CONFIG_SETTINGS
from tests.web.fakes import ROOT, TOKEN, application, services

STATIC = ROOT / "broker/web/static"
HOSTS = (ROOT / "docs/hosts.md").read_text(encoding="utf-8")


@pytest.fixture
def client() -> FlaskClient:
    return application(services()).test_client()


def packed(content: bytes) -> int:
    return len(gzip.compress(content, 6))


def test_the_script_for_hosts_is_small_and_needs_nothing() -> None:
    script = (STATIC / "connect.js").read_bytes()

    assert packed(script) < 3 * 1024
    assert b"import" not in script.replace(b"import_failed", b"")
    assert b"cookie" not in script


def test_other_origins_may_load_the_script_for_hosts_and_nothing_else(client: FlaskClient) -> None:
    with client.get("/static/connect.js") as script:
        assert script.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert script.headers["Access-Control-Allow-Origin"] == "*"
    for path in ("/static/broker.js", "/static/style.css", "/connections", f"/connect/{TOKEN}"):
        with client.get(path) as answer:
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_documents_tell_the_digest_of_the_script_for_hosts() -> None:
    digest = hashlib.sha384((STATIC / "connect.js").read_bytes()).digest()

    assert f"`sha384-{base64.b64encode(digest).decode()}`" in HOSTS


def test_the_documents_branding_is_made_of_settings() -> None:
    (block,) = (part for part in HOSTS.split("```") if part.startswith("toml\n[branding]"))
    known = {setting.name.partition(".")[2] for setting in CONFIG_SETTINGS if setting.name.startswith("branding.")}

    assert set(tomllib.loads(block.removeprefix("toml\n"))["branding"]) <= known


def test_a_first_view_is_light(client: FlaskClient) -> None:
    sent = [
        client.get(f"/connect/{TOKEN}").data,
        *((STATIC / name).read_bytes() for name in ("style.css", "broker.js")),
    ]

    assert sum(map(packed, sent)) + len((STATIC / "favicon.svg").read_bytes()) < 35 * 1024
    assert packed(sent[2]) < 10 * 1024


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_asks_a_third_party(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")

    assert "//" not in text.replace("// ", "").replace("https://connect.example.com", "").replace("//\n", "")


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_files_come_packed_to_who_can_unpack_them(client: FlaskClient, path: Path) -> None:
    address = f"/static/{path.name}"
    with client.get(address, headers={"Accept-Encoding": "br, gzip"}) as packed, client.get(address) as plain:
        assert packed.headers["Content-Encoding"] == "gzip"
        assert len(packed.data) < len(plain.data)
        assert gzip.decompress(packed.data) == plain.data == path.read_bytes()
        assert packed.content_type == plain.content_type
        for answer in (packed, plain):
            assert answer.headers["Vary"] == "Accept-Encoding", "a cache between must not mix them up"
            assert answer.headers["Cache-Control"] == "public, max-age=86400"
        assert packed.headers["ETag"] != plain.headers["ETag"]


@pytest.mark.parametrize("accepted", ["", "identity", "gzip;q=0", "br"])
def test_who_does_not_ask_for_it_gets_nothing_packed(client: FlaskClient, accepted: str) -> None:
    with client.get("/static/style.css", headers={"Accept-Encoding": accepted}) as answer:
        assert "Content-Encoding" not in answer.headers
        assert answer.data == (STATIC / "style.css").read_bytes()


@pytest.mark.parametrize("accepted", ["gzip", "identity"])
def test_a_file_that_has_not_changed_is_not_sent_again(client: FlaskClient, accepted: str) -> None:
    asked = {"Accept-Encoding": accepted}
    with client.get("/static/style.css", headers=asked) as first:
        known = first.headers["ETag"]
    with client.get("/static/style.css", headers=asked | {"If-None-Match": known}) as again:
        assert (again.status_code, again.data) == (304, b"")


def test_pages_are_never_packed_since_their_length_would_tell_of_secrets(client: FlaskClient) -> None:
    with client.get(f"/connect/{TOKEN}", headers={"Accept-Encoding": "gzip"}) as page:
        assert "Content-Encoding" not in page.headers


def test_a_file_that_is_not_there_is_not_found(client: FlaskClient) -> None:
    for name in ("nothing.css", "../pages.py"):
        with client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.status_code == 404
