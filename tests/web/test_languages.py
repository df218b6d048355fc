"""Pages speak the language people ask for, in words that are all there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from broker.sessions import SignedIn
from broker.settings import LANGUAGES, Branding
from broker.status import Status
from tests import translations
from tests.web.fakes import NOW, SESSION, TOKEN, FakeServices, application, connection, services, settings

LINK = f"/connect/{TOKEN}"
OTHERS = [language for language in LANGUAGES if language != "en"]
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|\{\w+\}")


@pytest.fixture
def fake() -> FakeServices:
    return services()


@pytest.fixture
def client(fake: FakeServices) -> FlaskClient:
    return application(fake).test_client()


def branded(**changes: str) -> FlaskClient:
    return application(services(settings(branding=Branding(name="Acme Analytics", **changes)))).test_client()  # type: ignore[arg-type]


def _forms(text: Any) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else (text,)


def language_of(text: str) -> str:
    found = re.search(r'<html lang="(\w+)"', text)
    assert found is not None
    return found[1]


# --- the catalogues -------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_holds_exactly_what_pages_say(language: str) -> None:
    current = translations.catalogue_path(language).read_bytes()
    # A new provider may wait for its translators, and be one file until then.
    known = translations.brought_up_to_date(language, without=translations.waiting(language))

    assert known == current, "run `make translations` and fill in what is empty"


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_is_translated(language: str) -> None:
    assert translations.untranslated(language) == []


@pytest.mark.parametrize("language", OTHERS)
def test_translations_keep_the_names_that_are_filled_in(language: str) -> None:
    for message in translations.read(language):
        if message.id:
            written, told = _forms(message.id), _forms(message.string)
            for one, other in zip(written, told, strict=True):
                assert set(PLACEHOLDER.findall(one)) == set(PLACEHOLDER.findall(other)), one


def test_what_lower_layers_declare_is_found() -> None:
    said = {message.id for message in translations.extracted()}

    assert {
        "This link has expired", "payments", "see your password", "Access removed", "We are updating",
        "That request was not understood", "This page has closed",
    } <= said  # fmt: skip


# --- which language ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("de-AT,de;q=0.9,en;q=0.5", "de"), ("en-GB,en", "en"), ("fr,de;q=0.5", "de"), ("fr", "en"), ("", "en")],
)
def test_a_page_is_in_the_language_the_browser_prefers(client: FlaskClient, accepted: str, language: str) -> None:
    page = client.get(LINK, headers={"Accept-Language": accepted}).text

    assert language_of(page) == language
    assert ("Stripe verbinden" in page) == (language == "de")


def test_an_address_may_ask_for_a_language_and_the_pages_that_follow_agree(client: FlaskClient) -> None:
    assert language_of(client.get(f"{LINK}?lang=de").text) == "de"
    assert language_of(client.get(LINK).text) == "de"
    assert language_of(client.get(f"{LINK}?lang=en").text) == "en"
    assert language_of(client.get("/connections").text) == "en"


@pytest.mark.parametrize("asked", ["fr", "", "de%0d%0aSet-Cookie:x", "../de"])
def test_a_language_nobody_speaks_changes_nothing(client: FlaskClient, asked: str) -> None:
    answer = client.get(f"{LINK}?lang={asked}")

    assert language_of(answer.text) == "en"
    assert client.get_cookie("broker_language") is None


def test_a_configured_language_wins_over_the_browser_and_yields_to_the_address() -> None:
    client = branded(language="de")

    assert language_of(client.get(LINK, headers={"Accept-Language": "en"}).text) == "de"
    assert language_of(client.get(f"{LINK}?lang=en").text) == "en"


def test_a_page_leads_to_the_same_page_in_the_other_language(client: FlaskClient) -> None:
    assert '<a href="?lang=de" lang="de" hreflang="de">Deutsch</a>' in client.get(LINK).text
    assert '<a href="?lang=en" lang="en" hreflang="en">English</a>' in client.get(f"{LINK}?lang=de").text


@pytest.mark.parametrize("path", ["/nowhere", "/connections"])
def test_the_page_of_a_failure_leads_to_no_other_language(client: FlaskClient, path: str) -> None:
    assert "?lang=" not in client.get(path).text


def test_errors_speak_to_people_in_their_language_and_to_machines_in_english(client: FlaskClient) -> None:
    german = {"Accept-Language": "de"}

    page = client.get("/nowhere", headers=german).text
    answer = client.get("/api/v1/nowhere", headers=german).get_json()

    assert language_of(page) == "de"
    assert "Seite nicht gefunden" in page
    assert answer["title"] == "There is nothing at this address"


def test_a_persons_page_is_german_throughout(client: FlaskClient, fake: FakeServices) -> None:
    fake.sessions.current = SignedIn(7, None, None, NOW)
    fake.connections.items = [connection(Status.REVOKED)]
    client.set_cookie("broker_session", SESSION)

    page = client.get("/connections?lang=de").text

    for words in (
        "1 Konto braucht Aufmerksamkeit", "Zugriff entfernt", "Stripe meldet, dass der Zugriff",
        "Darf lesen", "Zahlungen, Kunden", "18. Nov. 2026, 10:00 UTC", "Einzelheiten zu Lind Ceramics",
    ):  # fmt: skip
        assert words in page


# --- the theme ------------------------------------------------------------------------------------------


def test_a_page_follows_the_system_unless_asked_otherwise(client: FlaskClient) -> None:
    page = client.get(LINK).text

    assert "data-theme" not in page
    assert '<meta name="color-scheme" content="light dark">' in page


def test_an_address_may_ask_for_a_theme_and_the_pages_that_follow_agree(client: FlaskClient) -> None:
    assert 'data-theme="dark"' in client.get(f"{LINK}?theme=dark").text
    page = client.get("/connections").text
    assert 'data-theme="dark"' in page
    assert '<meta name="color-scheme" content="dark">' in page
    assert 'data-theme="dark"' in client.get(f"{LINK}?theme=purple").text


def test_a_theme_can_be_configured() -> None:
    client = branded(theme="light")

    assert 'data-theme="light"' in client.get(LINK).text
    assert 'data-theme="dark"' in client.get(f"{LINK}?theme=dark").text
