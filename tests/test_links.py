"""Connect links: what hosts may ask for, and who may open them when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from broker.audit import Actor
from broker.contract import LinkState
from broker.errors import LinkExpired, LinkRevoked, LinkUnknown, LinkUsed, OtherBrowser
from broker.links import CreatedLink, LinkInvalid, LinkRequest, return_address
from broker.models import AuditRecord, EndUser, Flow, FlowState, Link
from tests.house import House, open_house

ORIGINS = ("https://app.example", "http://127.0.0.1:9000")
HERE, THERE = "a" * 64, "b" * 64


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def no_rows() -> Iterator[House]:
    """For what is refused before the database is asked."""
    with open_house("sqlite://") as opened:
        yield opened


def make(house: House, end_user_id: str = "user-1", **changes: Any) -> CreatedLink:
    return house.links.create(LinkRequest(end_user_id, **changes), created_by="key_abc")


def token_of(link: CreatedLink) -> str:
    return link.url.rpartition("/")[2]


def key_of(house: House, link: CreatedLink) -> int:
    return int(house.value(sa.select(Link.id).where(Link.public_id == link.id)))


def problems(house: House, **changes: Any) -> dict[str, list[str]]:
    with pytest.raises(LinkInvalid) as refused:
        make(house, **changes)
    return refused.value.fields


def test_a_link_carries_an_unguessable_token_that_is_not_stored(house: House) -> None:
    link = make(house)
    assert link.url.startswith("http://localhost:8000/connect/")
    assert len(token_of(link)) >= 43
    with house.database.read() as connection:
        row = connection.execute(sa.select(Link)).one()
    assert token_of(link) not in str(row)
    assert token_of(link) not in str(house.audited())


def test_a_link_lives_as_long_as_configured_unless_asked_otherwise(house: House) -> None:
    assert (make(house).expires_at - house.clock.now()).total_seconds() == 30 * 60
    assert (make(house, expires_in=90).expires_at - house.clock.now()).total_seconds() == 90


@pytest.mark.parametrize("seconds", [0, -1, 7 * 86_400 + 1, 2**70])
def test_a_life_out_of_range_is_refused(no_rows: House, seconds: int) -> None:
    assert list(problems(no_rows, expires_in=seconds)) == ["expires_in"]


def test_making_a_link_leaves_one_audit_record_in_the_name_of_the_key(house: House) -> None:
    link = make(house)
    assert house.audited() == [("api_key", "key_abc", "link.created", link.id)]


def test_an_end_user_is_remembered_and_only_what_the_host_says_changes(house: House) -> None:
    make(house, email="jo@example.com", name="Jo")
    make(house, name="Joanna")
    with house.database.read() as connection:
        rows = connection.execute(sa.select(EndUser.external_id, EndUser.email, EndUser.name)).all()
    assert [tuple(row) for row in rows] == [("user-1", "jo@example.com", "Joanna")]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"end_user_id": ""}, "end_user.id"),
        ({"end_user_id": "   "}, "end_user.id"),
        ({"end_user_id": "x" * 256}, "end_user.id"),
        ({"end_user_id": "a\x00b"}, "end_user.id"),
        ({"end_user_id": "a\ud800b"}, "end_user.id"),
        ({"end_user_id": "a\nb"}, "end_user.id"),
        ({"email": "nobody"}, "end_user.email"),
        ({"email": "a@b\x00"}, "end_user.email"),
        ({"name": "\udfff"}, "end_user.name"),
        ({"name": "x" * 201}, "end_user.name"),
        ({"apps": ()}, "apps"),
        ({"apps": ("nope",)}, "apps"),
        ({"apps": ("\ud800",)}, "apps"),
        ({"return_url": "https://evil.example/"}, "return_url"),
        ({"metadata": {f"k{n}": n for n in range(21)}}, "metadata"),
        ({"metadata": {"k" * 65: 1}}, "metadata"),
        ({"metadata": {"": 1}}, "metadata"),
        ({"metadata": {"a\x00": 1}}, "metadata"),
        ({"metadata": {"a": "\x00"}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"metadata": {"a": "x" * 501}}, "metadata"),
        ({"metadata": {"a": ["list"]}}, "metadata"),
        ({"metadata": {"a": {"b": 1}}}, "metadata"),
        ({"metadata": {"a": math.inf}}, "metadata"),
        ({"metadata": {"a": 10**40}}, "metadata"),
        ({"metadata": {"end_user_id": "x"}}, "metadata"),
        ({"metadata": {"broker_connection_id": "x"}}, "metadata"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_field(no_rows: House, changes: dict[str, Any], field: str) -> None:
    assert list(problems(no_rows, **changes)) == [field]


def test_every_problem_is_told_at_once(house: House) -> None:
    assert set(problems(house, end_user_id="", email="x", apps=("no",), expires_in=0)) == {
        "end_user.id", "end_user.email", "apps", "expires_in",
    }  # fmt: skip


def test_a_refused_link_changes_nothing(house: House) -> None:
    problems(house, expires_in=0)
    assert house.value(sa.select(sa.func.count()).select_from(EndUser)) == 0
    assert house.value(sa.select(sa.func.count()).select_from(AuditRecord)) == 0


def test_odd_but_proper_text_survives(house: House) -> None:
    odd = {"emoji 🎉": "日本語", "a.b": "x=y", 'quote"': True, "none": None, "number": 1.5}
    link = make(house, end_user_id="user/../1 ✓", metadata=odd)
    assert house.links.state(link.id).end_user_id == "user/../1 ✓"
    assert house.value(sa.select(Link.host_metadata)) == odd


# --- return addresses (S-16) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://app.example", "https://app.example/"),
        ("https://app.example/done?x=1&y=%20", "https://app.example/done?x=1&y=%20"),
        ("HTTPS://APP.Example:443/Done", "https://app.example/Done"),
        ("http://127.0.0.1:9000/demo/", "http://127.0.0.1:9000/demo/"),
        ("https://app.example?x=1", "https://app.example/?x=1"),
        ("https://app.example//evil.example", "https://app.example//evil.example"),
    ],
)
def test_an_allowed_address_is_kept_in_one_form(given: str, kept: str) -> None:
    assert return_address(given, ORIGINS) == kept


@pytest.mark.parametrize(
    "address",
    [
        "", "/", "/done", "//app.example/", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)",
        "data:text/html,x", "https:app.example", "https:/app.example", "https:\\\\app.example",
        "https://evil.example", "https://app.example.evil.example", "https://app.example@evil.example",
        "https://app.example:443@evil.example/", "https://user@app.example/", "https://app.example:8443/",
        "http://app.example/", "https://evil.example\\@app.example/", "https://evil.example\\.app.example/",
        "https://app.example\\.evil.example/", "https://app.example%2eevil.example", "https://app.example%00/",
        "https://app.example\x00.evil.example/", "https://app.example\t/", " https://app.example/",
        "https://app.example/ ", "https://app\n.example/", "https://ápp.example/", "https://app。example/",
        "https://app.example./", "https://[::1]/", "https://0x7f.1/", "http://2130706433:9000/",
        "https://app.example:/", "https://app.example:0443x/", "https://app.example/\ud800",
        "https://app.example/" + "x" * 2_000, "https://?@app.example/", "https://evil.example#@app.example/",
        "https://evil.example?@app.example/", "https:///app.example/", "https://app.example/a\\b",
    ],
)  # fmt: skip
def test_anything_a_browser_might_take_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        return_address(address, ORIGINS)


# --- states -----------------------------------------------------------------------------------------


def test_a_link_goes_through_its_states(house: House) -> None:
    link = make(house)
    states = [house.links.state(link.id).state]
    house.links.opened(token_of(link), None, count=True)
    states.append(house.links.state(link.id).state)
    house.bind(key_of(house, link), HERE)
    states.append(house.links.state(link.id).state)
    ref = house.connection(house.links.opened(token_of(link), HERE, count=False).end_user_id)
    house.spend(key_of(house, link), ref)
    states.append(house.links.state(link.id).state)
    assert states == [LinkState.UNOPENED, LinkState.OPENED, LinkState.STARTED, LinkState.USED]
    assert [saved.ref for saved in house.links.state(link.id).connections] == [ref]


def test_an_unused_link_expires_and_a_used_one_stays_used(house: House) -> None:
    unused, used = make(house), make(house)
    ref = house.connection(house.links.opened(token_of(used), None, count=False).end_user_id)
    house.spend(key_of(house, used), ref)
    house.clock.advance(30 * 60)
    assert house.links.state(unused.id).state is LinkState.EXPIRED
    assert house.links.state(used.id).state is LinkState.USED


def test_revoking_is_final_idempotent_and_audited_once(house: House) -> None:
    link = make(house)
    for _ in range(2):
        assert house.links.revoke(link.id, actor=Actor("api_key", "key_z")).state is LinkState.REVOKED
    assert [entry[2] for entry in house.audited()] == ["link.created", "link.revoked"]
    with pytest.raises(LinkRevoked):
        house.links.opened(token_of(link), HERE, count=True)


@pytest.mark.parametrize("public_id", ["lnk_none", "", "a\x00b", "\ud800", "x" * 5_000])
def test_an_unknown_id_is_unknown(house: House, public_id: str) -> None:
    for ask in (house.links.state, house.links.revoke):
        with pytest.raises(LinkUnknown):
            ask(public_id)


def test_lists_are_paged_newest_first(house: House) -> None:
    made = [make(house, end_user_id=f"user-{n}").id for n in range(5)]
    first = house.links.list(limit=2)
    rest = house.links.list(limit=10, after=first[-1].id)
    assert [view.id for view in (*first, *rest)] == made[::-1]
    with pytest.raises(LinkUnknown):
        house.links.list(after="lnk_gone")


# --- opening ----------------------------------------------------------------------------------------


def test_opening_says_for_whom_and_what(house: House) -> None:
    link = make(house, email="jo@example.com", apps=("stripe-test",), return_url="https://app.example/back")
    opened = house.links.opened(token_of(link), None, count=True)
    assert opened.end_user_label == "jo@example.com"
    assert [app.key for app in opened.apps] == ["stripe-test"]
    assert opened.return_url == "https://app.example/back"
    assert not opened.spent
    assert not opened.unfinished


def test_a_return_address_that_is_not_allowed_any_more_is_not_shown(house: House) -> None:
    link = make(house, return_url="https://app.example/back")
    house.settings = replace(house.settings, return_origins=())
    assert house.links.opened(token_of(link), None, count=True).return_url is None
    assert house.links.state(link.id).return_url == "https://app.example/back"


def test_looking_ahead_does_not_count_as_opening(house: House) -> None:
    link = make(house)
    house.links.opened(token_of(link), None, count=False)
    assert house.links.state(link.id).state is LinkState.UNOPENED


def test_only_the_first_opening_is_recorded(house: House) -> None:
    link = make(house)
    first = house.clock.now()
    house.links.opened(token_of(link), None, count=True)
    house.clock.advance(60)
    house.links.opened(token_of(link), None, count=True)
    assert house.value(sa.select(Link.opened_at)) == first


@pytest.mark.parametrize("token", ["", "nope", "a\x00b", "\ud800", "x" * 10_000])
def test_an_unknown_token_is_unknown(house: House, token: str) -> None:
    make(house)
    with pytest.raises(LinkUnknown):
        house.links.opened(token, None, count=True)


def test_an_expired_link_says_so(house: House) -> None:
    link = make(house)
    house.clock.advance(30 * 60)
    with pytest.raises(LinkExpired):
        house.links.opened(token_of(link), None, count=True)


def test_a_started_link_belongs_to_its_browser_until_the_flow_ends(house: House) -> None:
    link = make(house)
    house.bind(key_of(house, link), HERE)
    flow = house.flow(key_of(house, link), HERE)
    began = house.clock.now()
    for browser in (None, THERE):
        with pytest.raises(OtherBrowser):
            house.links.opened(token_of(link), browser, count=True)
    assert house.links.opened(token_of(link), HERE, count=True).unfinished == {"stripe": began}
    house.run(sa.update(Flow).where(Flow.id == flow).values(state=FlowState.FAILED, ended_at=began))
    assert not house.links.opened(token_of(link), THERE, count=True).unfinished
    # A failure has had a page of its own.
    assert not house.links.opened(token_of(link), HERE, count=True).unfinished


def test_a_binding_ends_when_its_flow_runs_out(house: House) -> None:
    link = make(house, expires_in=86_400)
    house.bind(key_of(house, link), HERE)
    house.flow(key_of(house, link), HERE)
    house.clock.advance(3_600)
    assert house.links.opened(token_of(link), THERE, count=True).id == key_of(house, link)


def test_a_used_link_shows_itself_to_its_own_browser_only(house: House) -> None:
    link = make(house)
    house.bind(key_of(house, link), HERE)
    person = house.links.opened(token_of(link), HERE, count=True).end_user_id
    ref = house.connection(person)
    house.spend(key_of(house, link), ref)
    house.clock.advance(3_600)
    assert house.links.opened(token_of(link), HERE, count=True).spent == {"stripe": house.key_of(ref)}
    for browser in (None, THERE):
        with pytest.raises(LinkUsed):
            house.links.opened(token_of(link), browser, count=True)


def test_a_manage_link_opens_its_persons_page_in_one_browser_only(house: House) -> None:
    token = token_of(make(house, "jo", manage=True))
    jo = house.value(sa.select(EndUser.id).where(EndUser.external_id == "jo"))
    assert house.links.enter(token, HERE) == jo
    assert house.links.enter(token, HERE) == jo
    with pytest.raises(LinkUsed):
        house.links.enter(token, THERE)


def test_an_ordinary_link_opens_no_page(house: House) -> None:
    token = token_of(make(house))
    with pytest.raises(LinkUnknown):
        house.links.enter(token, HERE)
