"""The documents: links lead somewhere, commands and settings exist, and generated tables are current."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from broker.app import create_app
from broker.providers import discover
from broker.settings.table import APP_FIELDS, CONFIG_SETTINGS
from tests.documents import ROOT, commands, generated, known_names, page_of, refusal
from tests.house import make_settings

DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"])
OF_TESTS = {"BROKER_TEST_DATABASES"}
OF_HOSTS = {"BROKER_API_KEY", "BROKER_URL"}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("provider", sorted(discover()))
def test_every_provider_has_a_page(provider: str) -> None:
    assert f"(`{provider}`)" in text(page_of(provider)).splitlines()[0]
    assert f"/oauth/{provider}/callback" in text(page_of(provider))


def test_the_tables_of_settings_are_current() -> None:
    for path, made in generated().items():
        assert text(path) == made, "run `make documents`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(path)):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_exists(path: Path) -> None:
    assert [told for words in commands(text(path)) if (told := refusal(words))] == []


def test_commands_are_found_where_they_stand() -> None:
    shell = "```sh\nA=$(broker keys generate)\ndocker compose run --rm web doctor\nbroker sandbox &  # one\n```\n"
    assert list(commands(shell + "and `broker db upgrade`")) == [
        ["keys", "generate"],
        ["doctor"],
        ["sandbox"],
        ["db", "upgrade"],
    ]
    assert refusal(["keys", "forget"])
    assert refusal(["keys", "retire", "--gone"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_setting_named_is_one(path: Path) -> None:
    beginnings = "|".join(["BROKER", "SEQUIN", *(name.upper() for name in discover())])
    names = set(re.findall(rf"\b(?:{beginnings})_[A-Z_]*[A-Z]\b", text(path)))
    chosen = set(re.findall(r'env = "(\w+)"', text(path)))
    assert names - chosen <= known_names() | OF_TESTS | OF_HOSTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_toml_file_shown_is_made_of_settings(path: Path) -> None:
    known = {setting.name for setting in CONFIG_SETTINGS}
    for block in re.findall(r"^```toml\n(.*?)^```", text(path), re.MULTILINE | re.DOTALL):
        written = tomllib.loads(block)
        # A table within a table, such as [operators.sign_in].
        written |= {f"operators.{name}": table for name, table in written.pop("operators", {}).items()}
        for section, table in written.items():
            if section != "apps":
                assert {f"{section}.{key}" for key in table} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_named_is_there(path: Path) -> None:
    folders = r"broker|deploy|docs|examples|templates|tests|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text(path)):
        assert (ROOT / name).exists(), name


def test_every_page_named_is_served(tmp_path: Path) -> None:
    app = create_app(make_settings(f"sqlite:///{tmp_path}/broker.db", data_dir=tmp_path))
    served = {re.sub(r"<[^>]*>", "<>", rule.rule).rstrip("/") for rule in app.url_map.iter_rules()}
    pages = re.findall(r"`(/[a-z][\w./<>-]*)`", "".join(map(text, DOCUMENTS)))
    missing = {page for page in pages if re.sub(r"<[^>]*>|stripe-test", "<>", page).rstrip("/") not in served}
    app.extensions["broker"].database.engine.dispose()
    assert missing <= {"/demo", "/demo/", "/control/log", "/data", "/tmp", "/var/lib/broker"}


def test_the_documentation_names_every_document() -> None:
    index = text(ROOT / "docs/README.md")
    for path in (ROOT / "docs").rglob("*.md"):
        place = path.relative_to(ROOT / "docs")
        # A folder is named as a whole: a provider's page is found by its name.
        assert path.name == "README.md" or f"({place if place.parent == Path() else place.parent})" in index


def test_every_field_of_an_oauth_app_has_a_meaning() -> None:
    assert all(field.meaning for field in APP_FIELDS)
    for path in generated():
        assert "Option of this provider." not in text(path)
