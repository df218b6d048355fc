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
