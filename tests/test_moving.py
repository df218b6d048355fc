"""Moving out and in: the same connections on the other side, again and again, and every bad line named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from broker.attach import grant_binding
from broker.connections import ConnectionUnknown
from broker.models import Claim, ConnectedAccount, EndUser, Job
from broker.moving import WRITTEN_AT_ONCE, LineOutcome, LineRefused, Moving, Outcome
from broker.oauth import parse_grant
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.house import House, app_of, open_house

KEY = EncryptionKey("move", bytes(range(32)))
OTHER_KEY = EncryptionKey("move", bytes(range(1, 33)))
TOKEN = "SENTINEL-ACCESS"


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def there(tmp_path: Path, sqlite_databases: Any) -> Iterator[House]:
    """An empty broker to move into, with an encryption key of its own."""
    with (
        sqlite_databases.migrated() as url,
        open_house(url, encryption_keys=(EncryptionKey("there", bytes(range(2, 34))),)) as opened,
    ):
        yield opened


def moving(house: House) -> Moving:
    return Moving(database=house.database, clock=house.clock, apps=house.apps, vault=vault(house), jobs=house.jobs)


def vault(house: House) -> Vault:
    return Vault(house.settings.encryption_keys)


def sealed(house: House, person: int, *, ref: str, **changes: Any) -> str:
    """Add a connection that still waits for its import, grant and all."""
    grant = parse_grant({"access_token": TOKEN, "token_type": "bearer"}, received_at=house.clock.now())
    kept = vault(house).seal(grant.to_json(), grant_binding(ref, 3))
    values = {"grant_sealed": kept, "token_version": 3, "import_state": "pending"}
    return house.connection(person, ref=ref, **(values | changes))


def imported(house: House, person: int, **changes: Any) -> str:
    """Add a connection that Sequin holds."""
    values = {"credential_id": "crd_1", "sequin_oauth_app_id": "app_1", "imported_at": house.clock.now()}
    return house.connection(person, **(values | changes))


def take(house: House, lines: list[str], key: EncryptionKey | None = KEY) -> list[LineOutcome]:
    return list(moving(house).take_lines([f"{line}\n".encode() for line in lines], key=key))


def rows(house: House, model: Any) -> list[Any]:
    with house.database.read() as connection:
        return list(connection.execute(sa.select(*model.__table__.columns)).all())


# --- out and in ---------------------------------------------------------------------------------------


def test_what_moves_out_moves_in_and_grants_open_there(house: House, there: House) -> None:
    ada = house.end_user("ada", email="ada@example.com", name="Ada")
    first = sealed(house, ada, ref="0000-0000-0001", host_metadata={"plan": "pro"}, account_name="Lind <Ceramics>")
    second = imported(house, house.end_user("jo"))
    lines = list(moving(house).export(key=KEY))

    assert [each.outcome for each in take(there, lines)] == [Outcome.SAVED, Outcome.SAVED]

    shown = [there.connections.find(ref) for ref in (first, second)]
    assert [(one.end_user.id, one.status, one.hand_off.credential_id) for one in shown] == [
        ("ada", "pending", None),
        ("jo", "unknown", "crd_1"),
    ]
    assert (shown[0].metadata, shown[0].account) == ({"plan": "pro"}, house.connections.find(first).account)
    opened = vault(there).open(rows(there, ConnectedAccount)[0].grant_sealed, grant_binding(first, 1))
    assert TOKEN.encode() in opened
    assert sorted(job.kind for job in rows(there, Job)) == ["import", "verify"]
    assert len(rows(there, Claim)) == 2


def test_no_token_leaves_unsealed_and_without_a_key_none_leaves_at_all(house: House) -> None:
    sealed(house, house.end_user("ada"), ref="0000-0000-0001")

    with_grants, without = list(moving(house).export(key=KEY)), list(moving(house).export())

    assert TOKEN not in with_grants[0]
    assert json.loads(with_grants[0])["grant"]["token_version"] == 3
    assert json.loads(without[0])["grant"] is None


def test_what_has_ended_stays_and_an_export_goes_on_where_it_stopped(house: House) -> None:
    person = house.end_user("ada")
    refs = [imported(house, person) for _ in range(3)]
    imported(house, person, disconnected_at=house.clock.now())

    assert [json.loads(line)["ref"] for line in moving(house).export()] == refs
    assert [json.loads(line)["ref"] for line in moving(house).export(after=refs[0])] == refs[1:]
    with pytest.raises(ConnectionUnknown):
        next(moving(house).export(after="nobody"))


def test_moving_in_again_changes_nothing(house: House, there: House) -> None:
    for name in ("ada", "jo"):
        imported(house, house.end_user(name))
    lines = list(moving(house).export())
    take(there, lines[:1])
    before = rows(there, ConnectedAccount)

    assert [each.outcome for each in take(there, lines)] == [Outcome.HERE_ALREADY, Outcome.SAVED]
    assert [each.outcome for each in take(there, lines)] == [Outcome.HERE_ALREADY] * 2
    assert rows(there, ConnectedAccount)[:1] == before
    assert len(rows(there, EndUser)) == 2


def test_what_was_committed_before_an_end_half_way_stays_and_the_rest_follows(house: House, there: House) -> None:
    person = house.end_user("ada")
    for _ in range(WRITTEN_AT_ONCE + 50):
        imported(house, person)
    lines = list(moving(house).export())
    outcomes = moving(there).take_lines(f"{line}\n".encode() for line in lines)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(rows(there, ConnectedAccount)) == WRITTEN_AT_ONCE

    again = take(there, lines)

    assert [each.outcome for each in again] == [Outcome.HERE_ALREADY] * WRITTEN_AT_ONCE + [Outcome.SAVED] * 50
    assert len(rows(there, ConnectedAccount)) == WRITTEN_AT_ONCE + 50


def change(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda line: json.dumps(line | changes)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda line: "{", "not JSON"),
        (lambda line: "[]", "valid dictionary"),
        (lambda line: "[" * 100_000, "not JSON"),
        (change(ref="7F3K"), "ref"),
        (change(app="nope"), "not configured"),
        (change(nonsense=1), "nonsense"),
        (change(end_user={"id": ""}), "end_user.id"),
        (change(end_user={"id": "a\x00"}), "end_user.id"),
        (change(metadata={"a": "\x00"}), "cannot be stored"),
        (change(metadata={"a": "\ud800"}), "cannot be stored"),
        (change(connected_at="2026-11-20T10:00:00"), "zone"),
        (change(sequin=None, account={"id": "acct_9", "name": "x", "mode": "live"}), "nothing could be imported"),
        (change(grant={"sealed": "AAAA", "token_version": 1}), "does not open"),
        (change(grant={"sealed": "no base64", "token_version": 1}), "does not open"),
        (change(end_user={"id": "somebody-else"}, ref="0000-0000-0009"), "another end user"),
        (change(account={"id": "acct_9", "name": "x", "mode": "live"}), "another connection"),
    ],
    ids=count(),
)
def test_every_bad_line_is_named_and_the_others_go_in(
    house: House, there: House, spoil: Callable[[dict[str, Any]], str], says: str
) -> None:
    person = house.end_user("ada")
    imported(house, person)
    imported(house, person)
    first, last = list(moving(house).export())

    good, bad, also_good = take(there, [first, spoil(json.loads(first)), last])

    assert (good.outcome, also_good.outcome) == (Outcome.SAVED, Outcome.SAVED)
    assert (bad.line, bad.outcome) == (2, Outcome.BAD)
    assert says in bad.problem


def test_an_account_whose_page_could_not_be_made_is_refused_though_sequin_holds_it(database_url: str) -> None:
    at = "2026-11-20T10:00:00Z"
    line = {
        "ref": "0000-0000-0001", "end_user": {"id": "ada"}, "app": "salesforce", "connected_at": at, "created_at": at,
        "account": {"id": "00D000000000001", "name": "x", "mode": "live"},
        "sequin": {"credential_id": "crd_1", "imported_at": at},
    }  # fmt: skip
    with open_house(database_url, apps={"salesforce": app_of("salesforce", "salesforce")}) as house:
        (outcome,) = take(house, [json.dumps(line)])
    assert outcome.outcome is Outcome.BAD
    assert "`facts`" in outcome.problem


def test_lines_that_go_in_together_are_judged_one_after_the_other(house: House) -> None:
    def line(person: str, ref: str, account: str, **changes: Any) -> str:
        at = "2026-11-20T10:00:00Z"
        return json.dumps(
            {"ref": ref, "end_user": {"id": person}, "app": "stripe", "connected_at": at, "created_at": at,
             "account": {"id": account, "name": "x", "mode": "live"},
             "sequin": {"credential_id": "crd_1", "imported_at": at}} | changes
        )  # fmt: skip

    outcomes = take(
        house,
        [
            line("ada", "0000-0000-0001", "acct_1", sequin=None),
            line("jo", "0000-0000-0001", "acct_1"),
            line("jo", "0000-0000-0002", "acct_1"),
            line("ada", "0000-0000-0003", "acct_1"),
            line("ada", "0000-0000-0001", "acct_2"),
            line("jo", "0000-0000-0004", "acct_2"),
        ],
    )

    assert [each.problem or each.outcome for each in outcomes] == [
        "has neither a token nor a credential in Sequin, so nothing could be imported",
        Outcome.SAVED,
        Outcome.HERE_ALREADY,
        "its account is connected to another end user here",
        "its reference 0000-0000-0001 stands for another connection here",
        Outcome.SAVED,
    ]
    # A line that is refused leaves no claim behind that would keep others out.
    assert [(row.account_id, row.end_user_id) for row in rows(house, Claim)] == [
        (row.account_id, row.end_user_id) for row in rows(house, ConnectedAccount)
    ]


def test_a_large_move_takes_a_statement_for_each_table_and_not_for_each_line(house: House) -> None:
    table = [HEADING, *(f"user-{n},,stripe,acct_{n},,live,{TOKEN},,,\n" for n in range(WRITTEN_AT_ONCE))]
    statements: list[str] = []
    sa.event.listen(house.database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))

    assert {each.outcome for each in moving(house).take_table(table)} == {Outcome.SAVED}

    # Large inserts are cut into a few.
    assert len(statements) < 30, statements


def test_grants_need_their_key(house: House, there: House) -> None:
    sealed(house, house.end_user("ada"), ref="0000-0000-0001")
    lines = list(moving(house).export(key=KEY))

    for key in (None, OTHER_KEY):
        (bad,) = take(there, lines, key)
        assert bad.outcome is Outcome.BAD
        assert TOKEN not in bad.problem
    assert take(there, lines)[0].outcome is Outcome.SAVED


# --- a table of existing tokens -----------------------------------------------------------------------

HEADING = "end_user_id,email,app,account_id,account_name,mode,access_token,refresh_token,scope,metadata.plan\n"


def test_existing_tokens_move_in_from_a_table(house: House) -> None:
    table = [
        HEADING,
        f"ada,ada@example.com,stripe,acct_1,Lind Ceramics,live,{TOKEN},rt,read_write,pro\n",
        "jo,,stripe,acct_2,,test,another-token,,,\n",
    ]

    assert [each.outcome for each in moving(house).take_table(table)] == [Outcome.SAVED] * 2
    assert [each.outcome for each in moving(house).take_table(table)] == [Outcome.HERE_ALREADY] * 2

    first, second = rows(house, ConnectedAccount)
    assert (first.account_name, first.scopes, first.host_metadata) == ("Lind Ceramics", ["read_write"], {"plan": "pro"})
    assert (second.account_name, second.mode, second.import_state) == ("acct_2", "test", "pending")
    assert TOKEN.encode() in vault(house).open(first.grant_sealed, grant_binding(first.ref, 1))
    assert [job.kind for job in rows(house, Job)] == ["import", "import"]


@pytest.mark.parametrize(
    "row",
    [
        "ada,,stripe,acct_1,,live,,,,\n",
        "ada,,nope,acct_1,,live,tok,,,\n",
        "ada,,stripe,acct_1,,prod,tok,,,\n",
        ",,stripe,acct_1,,live,tok,,,\n",
        "ada,,stripe,acct_1,,live,tok\n",
        "ada,,stripe,acct_1,,live,tok,,,,,more,than,there,is\n",
        '"ada"x,,stripe,acct_1,,live,tok,,,\n',
        "ada,,stripe,acct_1,,live,\udc80,,,\n",
    ],
    ids=count(),
)
def test_a_bad_row_is_named_and_the_others_go_in(house: House, row: str) -> None:
    outcomes = list(moving(house).take_table([HEADING, row, "jo,,stripe,acct_2,,live,tok,,,\n"]))

    assert [(each.line, each.outcome) for each in outcomes] == [(2, Outcome.BAD), (3, Outcome.SAVED)]
    assert outcomes[0].problem


def test_a_table_without_its_columns_is_refused_as_a_whole(house: House) -> None:
    with pytest.raises(LineRefused, match="account_id, end_user_id"):
        moving(house).take_table(["app,mode\n", "stripe,live\n"])
