"""The console's page of the audit trail and its CSV, and `broker audit verify`."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from broker import audit, audit_trail
from broker.cli.audit import audit as commands
from broker.models import AuditRecord, Role
from broker.operators import Operators
from broker.services import Services
from broker.web.spreadsheet import cell
from tests.house import House
from tests.web.test_console import signed_in, text_of


@pytest.fixture
def services(app: Flask) -> Services:
    found: Services = app.extensions["broker"]
    return found


@pytest.fixture
def client(app: Flask, house: House) -> FlaskClient:
    return signed_in(app, Operators(house.database, house.clock))


def write(house: House, target: str, *, action: str = "link.created", actor: str = "key_1") -> None:
    with house.database.write() as connection:
        audit.record(
            connection, at=house.clock.now(), actor_kind="api_key", actor=actor, action=action, target=target,
            detail={"apps": 2},
        )  # fmt: skip


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- the page -----------------------------------------------------------------------------------------


def test_records_are_listed_newest_first_with_their_place_in_the_chain(
    house: House, services: Services, client: FlaskClient
) -> None:
    write(house, "lnk_1")
    services.audit_chain.seal()
    write(house, "lnk_2")
    text = text_of(client.get("/ops/audit"))
    assert text.index("lnk_2") < text.index("lnk_1")
    assert "Not sealed yet" in text
    assert "link.created" in text
    assert "kept for 400 days" in text


@pytest.mark.parametrize(
    "query", ["action=link.revoked", "actor=key_2", "target=lnk_2", "from=2026-11-21", "from=2026-11-21&to=2026-11-21"]
)
def test_every_filter_narrows_the_list(app: Flask, house: House, query: str) -> None:
    write(house, "lnk_1")
    house.clock.advance(86_400)
    write(house, "lnk_2", action="link.revoked", actor="key_2")
    client = signed_in(app, Operators(house.database, house.clock))
    found = rows_of(client.get(f"/ops/audit.csv?{query}").get_data(as_text=True))
    text = text_of(client.get(f"/ops/audit?{query}"))
    assert "<code>lnk_2</code>" in text
    assert "<code>lnk_1</code>" not in text
    assert "lnk_2" in {row["target"] for row in found}
    assert "lnk_1" not in {row["target"] for row in found}


def test_the_last_day_asked_for_belongs_to_what_is_found(house: House, client: FlaskClient) -> None:
    write(house, "lnk_1")
    assert "<code>lnk_1</code>" in text_of(client.get("/ops/audit?to=2026-11-20"))
    assert "<code>lnk_1</code>" not in text_of(client.get("/ops/audit?to=2026-11-19"))


def test_a_date_that_is_none_is_told_at_its_field_and_nothing_is_looked_for(house: House, client: FlaskClient) -> None:
    for path in ("/ops/audit", "/ops/audit.csv"):
        response = client.get(f"{path}?from=yesterday&target=lnk_1")
        assert response.status_code == 400
        assert 'aria-describedby="from-wrong"' in response.get_data(as_text=True)
    assert "audit.viewed" not in [entry[2] for entry in house.audited()]


def test_text_that_no_record_can_hold_finds_nothing(client: FlaskClient) -> None:
    assert "No records match" in text_of(client.get("/ops/audit?target=%00"))


def test_pages_follow_each_other_without_a_gap_however_many_are_of_one_moment(
    house: House, client: FlaskClient
) -> None:
    for number in range(120):
        write(house, f"lnk_{number:03}")
    seen: list[str] = []
    address = "/ops/audit?action=link.created"
    while address:
        text = text_of(client.get(address))
        seen += [f"lnk_{number:03}" for number in reversed(range(120)) if f"<code>lnk_{number:03}</code>" in text]
        found = text.partition('rel="next"')[0].rpartition('href="')[2] if 'rel="next"' in text else ""
        address = found.partition('"')[0].replace("&amp;", "&")
    assert seen == [f"lnk_{number:03}" for number in reversed(range(120))]


def test_the_page_before_leads_back_to_what_was_seen(house: House, client: FlaskClient) -> None:
    for number in range(120):
        write(house, f"lnk_{number:03}")

    def go(address: str) -> tuple[list[str], dict[str, str]]:
        text = text_of(client.get(address))
        ways = {rel: href for href, rel in re.findall(r'href="([^"]+)" rel="(next|prev)"', text)}
        return re.findall(r"<code>(lnk_[0-9]+)</code>", text), ways

    first, ways = go("/ops/audit?action=link.created")
    assert set(ways) == {"next"}
    second, ways = go(ways["next"])
    third, last = go(ways["next"])
    assert (len(third), set(last)) == (20, {"prev"})
    assert go(last["prev"])[0] == second
    again, ways = go(go(last["prev"])[1]["prev"])
    assert again == first
    assert "next" in ways
    assert "prev" not in ways


def test_a_record_has_a_page_of_its_own_and_looking_at_it_is_recorded(
    house: House, services: Services, client: FlaskClient
) -> None:
    write(house, "lnk_<b>", action="connection.connected")
    key = house.value(sa.select(AuditRecord.id).where(AuditRecord.target == "lnk_<b>"))
    assert f'href="/ops/audit/{key}"' in text_of(client.get("/ops/audit"))
    assert "Not sealed yet" in text_of(client.get(f"/ops/audit/{key}"))
    services.audit_chain.seal()
    page = client.get(f"/ops/audit/{key}")
    for words in ("connection.connected", "key_1, api key", "Apps", "Digest", "Everything about this target"):
        assert words in text_of(page)
    assert "lnk_&lt;b&gt;" in page.get_data(as_text=True)
    details = house.value(sa.select(AuditRecord.detail).order_by(AuditRecord.id.desc()).limit(1))
    assert details == {"record": key}


@pytest.mark.parametrize("key", ["0", "424242", "9" * 40])
def test_a_record_that_is_not_there_is_told_so(client: FlaskClient, key: str) -> None:
    answer = client.get(f"/ops/audit/{key}")
    assert answer.status_code == 404
    assert "There is no such record" in text_of(answer)


@pytest.mark.parametrize("cursor", ["x", "-1", "9" * 40, "424242", "%C2%B2"])
def test_a_cursor_that_leads_nowhere_is_told_so(client: FlaskClient, cursor: str) -> None:
    for way in ("after", "before"):
        assert client.get(f"/ops/audit?{way}={cursor}").status_code == 404


def test_looking_and_exporting_are_recorded_with_what_was_asked_for(house: House, client: FlaskClient) -> None:
    client.get("/ops/audit?target=lnk_1")
    client.get("/ops/audit.csv?actor=key_1")
    with house.database.read() as connection:
        rows = connection.execute(
            sa.select(AuditRecord.actor, AuditRecord.action, AuditRecord.detail)
            .where(AuditRecord.target == "audit")
            .order_by(AuditRecord.id)
        ).all()
    assert [tuple(row) for row in rows] == [
        ("operator@example.com", "audit.viewed", {"target": "lnk_1"}),
        ("operator@example.com", "audit.exported", {"actor": "key_1"}),
    ]


def test_a_viewer_may_look_and_is_offered_no_export(app: Flask, house: House) -> None:
    client = signed_in(app, Operators(house.database, house.clock), Role.VIEWER)
    text = text_of(client.get("/ops/audit"))
    assert "operator.signed_in" in text
    assert "audit.csv" not in text
    assert client.get("/ops/audit.csv").status_code == 403


# --- the file -----------------------------------------------------------------------------------------


def test_the_file_names_its_columns_as_the_api_would(house: House, services: Services, client: FlaskClient) -> None:
    write(house, "lnk_1")
    services.audit_chain.seal()
    response = client.get("/ops/audit.csv?target=lnk_1")
    (row,) = rows_of(response.get_data(as_text=True))
    assert response.content_type == "text/csv; charset=utf-8"
    assert "attachment" in response.headers["Content-Disposition"]
    assert row == {
        "number": row["number"], "at": "2026-11-20T10:00:00Z", "actor_kind": "api_key", "actor": "key_1",
        "action": "link.created", "target": "lnk_1", "detail": '{"apps": 2}',
    }  # fmt: skip
    assert int(row["number"]) > 0


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r", " =", "＝"])
def test_no_cell_is_a_formula(house: House, client: FlaskClient, start: str) -> None:
    assert cell(f"{start}1+1") == f"'{start}1+1"
    write(house, f"{start}cmd()")
    targets = [row["target"] for row in rows_of(client.get("/ops/audit.csv").get_data(as_text=True))]
    assert f"'{start}cmd()" in targets or start == "\r"
    assert not any(target.startswith(("=", "+", "-", "@", "\t", "\r")) for target in targets)


def test_a_file_is_read_in_parts_and_ends_at_its_limit(
    house: House, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "BATCH", 3)
    monkeypatch.setattr(audit_trail, "MOST_EXPORTED", 8)
    for number in range(10):
        write(house, f"lnk_{number}")
    response = client.get("/ops/audit.csv?action=link.created", buffered=False)
    assert response.is_streamed
    targets = [row["target"] for row in rows_of(response.get_data(as_text=True))]
    assert targets == [f"lnk_{number}" for number in range(9, 1, -1)]


# --- the command line ---------------------------------------------------------------------------------


def test_an_intact_trail_is_told_with_a_mark_to_keep(app: Flask, house: House, services: Services) -> None:
    write(house, "lnk_1")
    services.audit_chain.seal()
    runner = app.test_cli_runner()
    told = runner.invoke(commands, ["verify", "--json"])
    assert told.exit_code == 0
    answer = json.loads(told.output)
    assert (answer["intact"], answer["verified"], answer["findings"]) == (True, 1, [])
    again = runner.invoke(commands, ["verify", "--expect", answer["mark"]])
    assert again.exit_code == 0
    assert "1 records are as they were sealed" in again.output
    assert runner.invoke(commands, ["verify", "--expect", "x"]).exit_code == 2


def test_a_tampered_record_is_named_and_the_command_fails(app: Flask, house: House, services: Services) -> None:
    write(house, "lnk_1")
    write(house, "lnk_2")
    services.audit_chain.seal()
    house.run(sa.update(AuditRecord).where(AuditRecord.target == "lnk_2").values(actor="key_2"))
    runner = app.test_cli_runner()
    told = runner.invoke(commands, ["verify"])
    assert told.exit_code == 1
    assert "Record 2 (number 2) was altered." in told.output
    told = runner.invoke(commands, ["verify", "--json"])
    assert told.exit_code == 1
    assert [(one["kind"], one["record_id"]) for one in json.loads(told.stdout)["findings"]] == [("altered", 2)]
