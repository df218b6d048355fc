"""Disconnecting: it ends here at once, at the provider and in Sequin until done, and nothing late brings it back."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
import sqlalchemy as sa

from broker.audit import Actor
from broker.circuits import OPENS_AFTER, PROBE_SECONDS, WAIT_SPREAD_SECONDS, app_circuit
from broker.connections import ConnectionUnknown, ConnectionView
from broker.disconnection import LANDED_AFTER, Disconnections
from broker.jobs import GIVE_UP_AFTER, LEASE_SECONDS
from broker.models import AuditRecord, Claim, CleanUp, ConnectedAccount, Flow, ImportState, Job, JobState
from broker.providers.base import ProviderUnavailable
from broker.status import Status
from tests.connecting import (
    ACCESS,
    CREDENTIAL,
    GITHUB_API,
    SEQUIN,
    SEQUIN_GITHUB_APP,
    SEQUIN_STRIPE_APP,
    Bench,
    github_app,
    open_bench,
    person_installation,
)
from tests.house import stripe_app

PERSON = Actor("end_user", "user-1")
DEAUTHORIZE = "https://connect.stripe.com/oauth/deauthorize"
END_TOKEN = f"{GITHUB_API}/applications/Iv1.acme/token"
UNINSTALL = f"{GITHUB_API}/app/installations/9"
LIST = f"{SEQUIN}/v1/credentials"
HELD = f"{LIST}/{CREDENTIAL}"
GONE = {
    "error": "invalid_client",
    "error_description": "This application is not connected to stripe account acct_1, or that account does not exist.",
}

Answer = tuple[int, dict[str, str], str]


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        ready(opened)
        yield opened


def ready(bench: Bench) -> None:
    """Let everybody around answer as on a good day."""
    bench.stripe()
    bench.github(person_installation())
    bench.sequin()
    bench.network.upsert("POST", DEAUTHORIZE, json={"stripe_user_id": "acct_1"})
    bench.network.upsert("DELETE", END_TOKEN, status=204)
    bench.network.upsert("DELETE", HELD, json={"id": CREDENTIAL, "deleted": True})
    bench.network.upsert("GET", LIST, json={"data": []})
    shown = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "properties": {"kind": "stripe_oauth2"}}
    bench.network.upsert("GET", HELD, json=shown)


def connected(bench: Bench, app: str = "stripe", *, imported: bool = True, **asked: Any) -> str:
    """Connect an account, let it arrive in Sequin, and return the connection's reference."""
    bench.connect(app, **asked)
    if imported:
        work(bench)
    bench.later(minutes=5)
    return str(bench.rows(ConnectedAccount)[-1].ref)


def work(bench: Bench) -> None:
    """Let a worker do everything that is due."""
    while bench.worker.run_once():
        pass


def ending(bench: Bench) -> Disconnections:
    return bench.services.disconnections


def end(bench: Bench, ref: str | None = None) -> str:
    """Disconnect and return the reference."""
    ref = ref or str(bench.row(ConnectedAccount).ref)
    ending(bench).request(ref, actor=PERSON)
    return ref


def row(bench: Bench) -> Any:
    return bench.row(ConnectedAccount)


def view(bench: Bench) -> ConnectionView:
    return bench.services.connections.find(row(bench).ref)


def job(bench: Bench, kind: str) -> Any:
    return bench.job(kind)


def deletions(bench: Bench, credential: str = CREDENTIAL) -> int:
    return sum(request.method == "DELETE" for request in bench.calls(f"{LIST}/{credential}"))


def claimed(bench: Bench) -> bool:
    return bool(bench.rows(Claim))


def during(bench: Bench, method: str, url: str, happens: Callable[[], object], answer: Answer) -> None:
    """Let something happen between a request and its answer; only once."""
    first = [happens]

    def body(_request: requests.PreparedRequest) -> Answer:
        if first:
            first.pop()()
        return answer

    bench.answering(method, url, body)


# --- asking for it ------------------------------------------------------------------------------------


def test_it_ends_here_at_once_and_the_rest_is_shown_as_pending(bench: Bench) -> None:
    ref = end(bench, connected(bench))
    found = row(bench)
    assert found.disconnected_at == bench.clock.now()
    assert (found.revocation, found.removal) == (CleanUp.PENDING, CleanUp.PENDING)
    assert [job(bench, kind).state for kind in ("import", "verify", "revoke", "remove")] == [
        JobState.DONE, JobState.DONE, JobState.WAITING, JobState.WAITING,
    ]  # fmt: skip
    assert view(bench).status is Status.DISCONNECTED
    assert "still ending the access at Stripe" in view(bench).note
    assert ("end_user", "user-1", "connection.disconnected", ref) in bench.house.audited()
    assert bench.calls(DEAUTHORIZE) == []


def test_then_it_is_ended_at_the_provider_and_deleted_in_sequin(bench: Bench) -> None:
    ref = end(bench, connected(bench))
    work(bench)
    found = row(bench)
    assert (found.revocation, found.removal) == (CleanUp.DONE, CleanUp.DONE)
    assert (found.credential_id, found.grant_sealed, found.metadata_digest) == (None, None, None)
    (sent,) = bench.calls(DEAUTHORIZE)
    assert isinstance(sent.body, bytes)
    assert parse_qs(sent.body.decode()) == {"client_id": ["ca_stripe"], "stripe_user_id": ["acct_1"]}
    assert b64decode(sent.headers["Authorization"].removeprefix("Basic ")) == b"sk_never_to_be_seen:"
    assert deletions(bench) == 1
    assert not claimed(bench)
    assert view(bench).note == "This account is no longer connected."
    actions = [entry[2] for entry in bench.house.audited() if entry[3] == ref]
    assert actions[-3:] == ["connection.disconnected", "connection.revoked", "connection.removed"]


def test_repeating_it_changes_nothing(bench: Bench) -> None:
    ref = end(bench, connected(bench))
    before = bench.everything()
    bench.later(seconds=1)
    end(bench, ref)
    assert bench.everything() == before
    work(bench)
    before = bench.everything()
    end(bench, ref)
    assert bench.everything() == before


def test_asked_by_many_at_once_it_happens_once(bench: Bench) -> None:
    ref = connected(bench)
    gate = threading.Barrier(6)

    def ask() -> None:
        gate.wait()
        end(bench, ref)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry[2] for entry in bench.house.audited()].count("connection.disconnected") == 1
    work(bench)
    assert (len(bench.calls(DEAUTHORIZE)), deletions(bench)) == (1, 1)


@pytest.mark.parametrize("ref", ["", "NOPE", "a\x00b", "\ud800"])
def test_an_unknown_reference_is_unknown(bench: Bench, ref: str) -> None:
    with pytest.raises(ConnectionUnknown):
        ending(bench).request(ref, actor=PERSON)
    with pytest.raises(ConnectionUnknown):
        ending(bench).effect(ref)


def test_a_grant_that_the_provider_does_not_need_is_erased_at_once(bench: Bench) -> None:
    connected(bench, imported=False)
    assert row(bench).grant_sealed is not None
    end(bench)
    assert row(bench).grant_sealed is None


# --- at the provider ----------------------------------------------------------------------------------


def test_stripe_saying_that_nothing_is_connected_is_as_good_as_done(bench: Bench) -> None:
    bench.network.upsert("POST", DEAUTHORIZE, status=401, json=GONE)
    end(bench, connected(bench))
    work(bench)
    assert row(bench).revocation == CleanUp.DONE


@pytest.mark.parametrize(
    "body",
    [
        {"error": "invalid_client", "error_description": "No application matches 'ca_stripe' and the key supplied."},
        {"error": "invalid_client"},
        {"error": {"type": "invalid_request_error", "message": "not connected to stripe account"}},
        {"error": "invalid_request", "error_description": "not connected to stripe account acct_1"},
        [],
    ],
)
def test_any_other_refusal_of_our_client_is_our_configuration(bench: Bench, body: object) -> None:
    bench.network.upsert("POST", DEAUTHORIZE, status=401, json=body)
    end(bench, connected(bench))
    work(bench)
    waiting = job(bench, "revoke")
    assert row(bench).revocation == CleanUp.PENDING
    assert (waiting.state, waiting.error, waiting.failures) == (JobState.WAITING, "provider_refused", 0)
    assert "401" in view(bench).operator_note
    bench.network.upsert("POST", DEAUTHORIZE, status=401, json=GONE)
    bench.later(minutes=1)
    work(bench)
    assert row(bench).revocation == CleanUp.DONE


def test_an_account_that_we_may_not_deauthorise_is_left_to_its_owner(bench: Bench) -> None:
    told = {"error": "invalid_client", "error_description": "no_deauth_on_controlled_account: this account …"}
    bench.network.upsert("POST", DEAUTHORIZE, status=401, json=told)
    end(bench, connected(bench))
    work(bench)
    assert row(bench).revocation == CleanUp.REFUSED
    assert job(bench, "revoke").state == JobState.DONE
    assert "remove it there" in view(bench).note


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"status": 500}, "provider_unavailable"),
        ({"status": 429, "headers": {"Retry-After": "7"}}, "provider_unavailable"),
        ({"status": 200, "body": "<html>"}, "unusable_answer"),
        ({"status": 200, "json": {"stripe_user_id": "acct_other"}}, "unusable_answer"),
        ({"status": 401, "body": "<html>"}, "unusable_answer"),
        ({"body": requests.ConnectionError("reset")}, "connection_broken"),
    ],
)
def test_what_may_pass_is_tried_until_it_has(bench: Bench, answer: dict[str, Any], code: str) -> None:
    bench.network.upsert("POST", DEAUTHORIZE, **answer)
    end(bench, connected(bench))
    work(bench)
    failed = job(bench, "revoke")
    assert row(bench).revocation == CleanUp.PENDING
    assert (failed.state, failed.failures) == (JobState.WAITING, 1)
    assert code in {failed.error, "connection_broken"}
    bench.network.upsert("POST", DEAUTHORIZE, json={"stripe_user_id": "acct_1"})
    bench.later(minutes=1)
    work(bench)
    assert row(bench).revocation == CleanUp.DONE


def test_it_is_never_given_up(bench: Bench) -> None:
    bench.network.upsert("POST", DEAUTHORIZE, status=503)
    bench.network.upsert("DELETE", HELD, status=503)
    end(bench, connected(bench))
    work(bench)
    bench.clock.advance(GIVE_UP_AFTER.total_seconds() + 1)
    work(bench)
    assert {job(bench, kind).state for kind in ("revoke", "remove")} == {JobState.WAITING}
    ready(bench)
    bench.later(minutes=16)
    work(bench)
    assert (row(bench).revocation, row(bench).removal) == (CleanUp.DONE, CleanUp.DONE)


def test_not_even_what_nobody_foresaw_makes_it_give_up(bench: Bench) -> None:
    connected(bench)
    bench.answering("POST", DEAUTHORIZE, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    bench.answering("DELETE", HELD, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    end(bench)
    work(bench)
    assert {job(bench, kind).error for kind in ("revoke", "remove")} == {"internal_error"}
    bench.clock.advance(GIVE_UP_AFTER.total_seconds() + 1)
    work(bench)
    assert {job(bench, kind).state for kind in ("revoke", "remove")} == {JobState.WAITING}
    for method, url in (("POST", DEAUTHORIZE), ("DELETE", HELD)):
        bench.network.remove(method, url)
    ready(bench)
    bench.later(minutes=16)
    work(bench)
    assert (row(bench).revocation, row(bench).removal) == (CleanUp.DONE, CleanUp.DONE)


def opened_circuit(bench: Bench) -> None:
    """Let Stripe fail people until nobody is sent there any more."""
    failure = ProviderUnavailable("GET /v1/account: 503")
    for _ in range(OPENS_AFTER):
        bench.services.circuits.failed(app_circuit("stripe"), failure)


def test_while_the_apps_circuit_is_open_it_waits_and_says_so(bench: Bench) -> None:
    connected(bench)
    opened_circuit(bench)
    end(bench)
    work(bench)
    assert bench.calls(DEAUTHORIZE) == []
    waiting = job(bench, "revoke")
    assert (waiting.state, waiting.error, waiting.failures) == (JobState.WAITING, "circuit_open", 0)
    assert "The provider has not answered stripe since" in view(bench).operator_note
    assert "goes on by itself" in view(bench).operator_note
    # Sequin is another side.
    assert row(bench).removal == CleanUp.DONE


def test_one_of_them_is_the_probe_and_its_success_lets_all_go(bench: Bench) -> None:
    for number in range(3):
        bench.stripe(f"acct_{number}")
        connected(bench, end_user=f"user-{number}")
    bench.network.replace("POST", DEAUTHORIZE, status=503)
    opened_circuit(bench)
    for each in bench.rows(ConnectedAccount):
        end(bench, each.ref)
    bench.later(seconds=PROBE_SECONDS + WAIT_SPREAD_SECONDS + 1)
    bench.house.run(sa.update(Job).where(Job.kind == "revoke").values(due_at=bench.clock.now()))
    work(bench)
    # The one that looked has failed, the others have not asked.
    assert len(bench.calls(DEAUTHORIZE)) == 1
    bench.answering("POST", DEAUTHORIZE, lambda sent: (200, {}, json.dumps({"stripe_user_id": account_in(sent)})))
    bench.later(seconds=PROBE_SECONDS + WAIT_SPREAD_SECONDS + 1)
    work(bench)
    assert {each.revocation for each in bench.rows(ConnectedAccount)} == {CleanUp.DONE}
    assert bench.services.circuits.open() == []


def account_in(sent: requests.PreparedRequest) -> str:
    assert isinstance(sent.body, bytes)
    return parse_qs(sent.body.decode())["stripe_user_id"][0]


def test_an_end_that_was_let_through_says_nothing_about_people_connecting(bench: Bench) -> None:
    connected(bench)
    for _ in range(OPENS_AFTER - 1):
        bench.services.circuits.failed(app_circuit("stripe"), ProviderUnavailable("503"))
    end(bench)
    work(bench)
    assert row(bench).revocation == CleanUp.DONE
    bench.services.circuits.failed(app_circuit("stripe"), ProviderUnavailable("503"))
    assert [each.name for each in bench.services.circuits.open()] == [app_circuit("stripe")]


def test_a_grant_that_somebody_else_uses_is_not_ended(bench: Bench) -> None:
    ref = connected(bench)
    other = bench.house.connection(bench.house.end_user("user-2"), account_id="acct_1", mode="live")
    assert ending(bench).effect(ref).is_shared
    assert not ending(bench).effect(ref).ends_access
    ending(bench).request(ref, actor=PERSON)
    work(bench)
    first, _ = bench.rows(ConnectedAccount)
    assert first.revocation == CleanUp.NOT_NEEDED
    assert bench.calls(DEAUTHORIZE) == []
    assert deletions(bench) == 1
    ending(bench).request(other, actor=PERSON)
    work(bench)
    assert len(bench.calls(DEAUTHORIZE)) == 1


def test_the_same_account_in_another_mode_is_another_account(bench: Bench) -> None:
    ref = connected(bench)
    bench.house.connection(bench.house.end_user("user-2"), account_id="acct_1", mode="test")
    bench.house.connection(bench.house.end_user("user-3"), account_id="acct_1", app_key="stripe-test")
    ending(bench).request(ref, actor=PERSON)
    work(bench)
    assert len(bench.calls(DEAUTHORIZE)) == 1


def test_an_app_that_is_not_configured_now_is_waited_for(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(app_key="gone"))
    end(bench)
    work(bench)
    assert (row(bench).revocation, row(bench).removal) == (CleanUp.PENDING, CleanUp.DONE)
    assert job(bench, "revoke").error == "app_unknown"
    bench.house.run(sa.update(ConnectedAccount).values(app_key="stripe"))
    bench.later(minutes=1)
    work(bench)
    assert row(bench).revocation == CleanUp.DONE


def test_github_is_told_of_the_one_token_we_hold_and_never_of_the_grant(bench: Bench) -> None:
    connected(bench, "github", imported=False)
    end(bench)
    assert row(bench).grant_sealed is not None
    work(bench)
    (sent,) = bench.calls(END_TOKEN)
    assert json.loads(sent.body or "") == {"access_token": ACCESS}
    assert b64decode(sent.headers["Authorization"].removeprefix("Basic ")) == b"Iv1.acme:github_never_to_be_seen"
    assert (row(bench).revocation, row(bench).grant_sealed) == (CleanUp.DONE, None)


@pytest.mark.parametrize("status", [404, 422])
def test_a_token_that_github_no_longer_knows_is_ended(bench: Bench, status: int) -> None:
    bench.network.upsert("DELETE", END_TOKEN, status=status, json={"message": "x"})
    connected(bench, "github", imported=False)
    end(bench)
    work(bench)
    assert row(bench).revocation == CleanUp.DONE


@pytest.mark.parametrize(("status", "error"), [(401, "provider_refused"), (200, "unusable_answer")])
def test_github_saying_anything_else_is_not_done(bench: Bench, status: int, error: str) -> None:
    bench.network.upsert("DELETE", END_TOKEN, status=status, json={})
    connected(bench, "github", imported=False)
    end(bench)
    work(bench)
    assert (row(bench).revocation, job(bench, "revoke").error) == (CleanUp.PENDING, error)
    assert row(bench).grant_sealed is not None


def test_without_a_token_there_is_nothing_to_end_at_github_and_the_installation_stays(bench: Bench) -> None:
    github_shown(bench)
    ref = connected(bench, "github")
    assert row(bench).grant_sealed is None
    assert ending(bench).effect(ref).stays == "the app’s installation"
    end(bench)
    work(bench)
    assert (row(bench).revocation, row(bench).removal) == (CleanUp.NOT_NEEDED, CleanUp.DONE)
    assert bench.calls(END_TOKEN) == []
    assert all(request.method == "GET" for request in bench.calls(UNINSTALL))


def github_shown(bench: Bench) -> None:
    """Let Sequin show the GitHub credential as it was imported."""
    shown = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_GITHUB_APP, "properties": {"kind": "github_app"}}
    bench.network.upsert("GET", HELD, json=shown)


@pytest.mark.parametrize("status", [204, 404])
def test_the_app_is_uninstalled_where_the_settings_say_so(database_url: str, status: int) -> None:
    apps = {"stripe": stripe_app("stripe"), "github": github_app(uninstall_on_disconnect=True)}
    with open_bench(database_url, apps=apps) as bench:
        ready(bench)
        github_shown(bench)
        bench.network.upsert("DELETE", UNINSTALL, status=status)
        ref = connected(bench, "github")
        assert ending(bench).effect(ref).stays == ""
        end(bench)
        work(bench)
        removed = [request for request in bench.calls(UNINSTALL) if request.method == "DELETE"]
        assert len(removed) == 1
        assert removed[0].headers["Authorization"].startswith("Bearer ey")
        assert row(bench).revocation == CleanUp.DONE


def test_a_grant_that_does_not_open_waits_for_its_key(bench: Bench) -> None:
    connected(bench, "github", imported=False)
    bench.house.run(sa.update(ConnectedAccount).values(grant_sealed=b"not sealed by us"))
    end(bench)
    work(bench)
    assert (row(bench).revocation, job(bench, "revoke").error) == (CleanUp.PENDING, "grant_unreadable")


# --- in Sequin ----------------------------------------------------------------------------------------


def test_a_credential_that_is_gone_already_is_deleted(bench: Bench) -> None:
    bench.network.upsert("DELETE", HELD, status=404, json={})
    end(bench, connected(bench))
    work(bench)
    assert row(bench).removal == CleanUp.DONE


@pytest.mark.parametrize(("status", "wait"), [(503, 60), (401, 60), (422, 901)])
def test_a_deletion_is_tried_until_done_and_the_account_stays_taken_until_then(
    bench: Bench, status: int, wait: int
) -> None:
    bench.network.upsert("DELETE", HELD, status=status, json={"summary": "in use by a sync"})
    end(bench, connected(bench))
    work(bench)
    assert (row(bench).removal, row(bench).credential_id) == (CleanUp.PENDING, CREDENTIAL)
    assert claimed(bench)
    assert str(status) in view(bench).operator_note
    assert "still clearing up" in view(bench).note
    bench.network.upsert("DELETE", HELD, status=200, json={})
    bench.clock.advance(wait)
    work(bench)
    assert row(bench).removal == CleanUp.DONE
    assert not claimed(bench)


def test_a_credential_that_another_connection_stands_on_is_left(bench: Bench) -> None:
    ref = connected(bench)
    bench.house.connection(bench.house.end_user("user-2"), credential_id=CREDENTIAL)
    ending(bench).request(ref, actor=PERSON)
    work(bench)
    first, second = bench.rows(ConnectedAccount)
    assert (first.removal, second.credential_id) == (CleanUp.NOT_NEEDED, CREDENTIAL)
    assert deletions(bench) == 0


def test_a_superseded_credential_goes_too(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(superseded_credential_id="before"))
    bench.network.upsert("DELETE", f"{LIST}/before", status=204)
    end(bench)
    work(bench)
    assert (deletions(bench), deletions(bench, "before")) == (1, 1)


def test_what_an_import_left_behind_without_an_answer_is_found_and_deleted(bench: Bench) -> None:
    """Sequin acted, its answer was lost, and the person disconnected before it was asked again."""
    bench.network.upsert("POST", LIST, body=requests.ConnectionError("lost"))
    ref = connected(bench)
    stray = {"id": "stray", "metadata": {"broker_connection_id": ref}, "properties": {}}
    foreign = {"id": "foreign", "metadata": {"broker_connection_id": "AAAA-BBBB-CCCC"}, "properties": {}}
    bench.network.upsert("GET", LIST, json={"data": [foreign, stray, {"id": "bare", "properties": {}}]})
    bench.network.upsert("DELETE", f"{LIST}/stray", status=204)
    end(bench)
    work(bench)
    assert (row(bench).removal, claimed(bench)) == (CleanUp.PENDING, True)
    assert deletions(bench, "stray") == 0
    bench.clock.advance(LANDED_AFTER.total_seconds())
    work(bench)
    assert deletions(bench, "stray") == 1
    assert (row(bench).removal, claimed(bench)) == (CleanUp.DONE, False)


def test_a_connection_that_never_arrived_has_nothing_to_delete(bench: Bench) -> None:
    connected(bench, imported=False)
    end(bench)
    bench.clock.advance(LANDED_AFTER.total_seconds())
    work(bench)
    assert row(bench).removal == CleanUp.NOT_NEEDED
    assert not claimed(bench)


# --- nothing late brings it back ----------------------------------------------------------------------


def test_an_import_whose_answer_comes_after_the_disconnect_revives_nothing_and_is_deleted(bench: Bench) -> None:
    connected(bench, imported=False)
    answer: Answer = (200, {}, json.dumps({"id": CREDENTIAL}))
    during(bench, "POST", LIST, lambda: (end(bench), ending(bench).run_remove(bench.lease("remove"))), answer)
    bench.deliveries.run(bench.lease("import"))
    found = row(bench)
    assert found.disconnected_at is not None
    assert (found.import_state, found.imported_at, found.removal) == (ImportState.PENDING, None, CleanUp.PENDING)
    work(bench)
    assert deletions(bench) == 1
    assert bench.calls(HELD)[0].method == "DELETE", "no verification"
    bench.clock.advance(LANDED_AFTER.total_seconds())
    work(bench)
    assert deletions(bench) == 2
    assert (row(bench).removal, row(bench).credential_id) == (CleanUp.DONE, None)
    assert [request.method for request in bench.calls(LIST)] == ["POST", "GET"]


def test_an_import_that_is_recorded_after_the_removal_was_over_is_deleted_all_the_same(bench: Bench) -> None:
    """A worker stalled for longer than anybody waits for it: its request cannot be recalled, its trace can."""
    connected(bench, imported=False)

    def long_ago() -> None:
        end(bench)
        bench.clock.advance(LANDED_AFTER.total_seconds())
        work(bench)
        assert row(bench).removal == CleanUp.NOT_NEEDED

    during(bench, "POST", LIST, long_ago, (200, {}, json.dumps({"id": CREDENTIAL})))
    bench.deliveries.run(bench.lease("import"))
    assert row(bench).removal == CleanUp.PENDING
    work(bench)
    assert deletions(bench) == 1
    assert (row(bench).removal, row(bench).credential_id) == (CleanUp.DONE, None)


def test_a_second_credential_known_too_late_does_not_hide_the_first(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(credential_id="first"))
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "import", row(bench).id)
    bench.network.upsert("DELETE", f"{LIST}/first", status=204)
    bench.house.run(sa.update(ConnectedAccount).values(grant_sealed=sealed(bench)))
    during(bench, "POST", LIST, lambda: end(bench), (200, {}, json.dumps({"id": CREDENTIAL})))
    bench.deliveries.run(bench.lease("import"))
    assert (row(bench).credential_id, row(bench).superseded_credential_id) == (CREDENTIAL, "first")
    assert row(bench).import_state == ImportState.PENDING
    bench.clock.advance(LANDED_AFTER.total_seconds())
    work(bench)
    assert deletions(bench) >= 1
    assert deletions(bench, "first") >= 1


def sealed(bench: Bench) -> bytes:
    """Return a grant sealed for the only connection."""
    from broker.attach import grant_binding
    from broker.oauth import Grant
    from broker.secret import Secret

    grant = Grant(Secret(ACCESS), None, "bearer", (), None, None)
    return bench.vault.seal(grant.to_json(), grant_binding(row(bench).ref, row(bench).token_version))


def test_a_verification_that_ends_after_the_disconnect_says_nothing(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    shown = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "properties": {"kind": "stripe_oauth2"}}
    during(bench, "GET", HELD, lambda: end(bench), (200, {}, json.dumps(shown)))
    bench.services.verifications.run(bench.lease("verify"))
    found = row(bench)
    assert found.disconnected_at is not None
    assert (found.verified_at, found.health) == (None, None)
    assert job(bench, "verify").state == JobState.DONE


def test_an_operators_retry_of_everything_does_not_bring_it_back(bench: Bench) -> None:
    bench.network.upsert("POST", LIST, status=422, json={"summary": "no"})
    connected(bench)
    assert job(bench, "import").state == JobState.PARKED
    end(bench)
    assert bench.jobs.rearm() == 0
    assert job(bench, "import").state == JobState.DONE


def test_a_flow_whose_grant_is_older_than_the_disconnect_brings_nothing_back(bench: Bench) -> None:
    connected(bench)
    bench.network.upsert("GET", "https://api.stripe.com/v1/account", status=503)
    flow = bench.connect().flow_ref
    bench.later(seconds=1)
    end(bench)
    bench.later(seconds=1)
    bench.stripe()
    bench.later(minutes=1)
    with bench.database.read() as connection:
        kinds = connection.execute(sa.select(Job.kind).where(Job.due_at.is_not(None))).scalars().all()
    assert "finish" in kinds
    bench.flows.finish(bench.flow(flow).id)
    assert (bench.flow(flow).state, bench.flow(flow).failure) == ("failed", "account_disconnected")
    assert row(bench).disconnected_at is not None


# --- connecting it again ------------------------------------------------------------------------------


def test_connecting_again_before_anything_was_done_takes_it_all_back(bench: Bench) -> None:
    ref = end(bench, connected(bench))
    bench.later(seconds=1)
    bench.connect()
    found = row(bench)
    assert (found.ref, found.disconnected_at, found.revocation, found.removal) == (ref, None, None, None)
    assert {job(bench, kind).state for kind in ("revoke", "remove")} == {JobState.DONE}
    work(bench)
    assert (bench.calls(DEAUTHORIZE), deletions(bench)) == ([], 0)
    assert (row(bench).credential_id, view(bench).status) == (CREDENTIAL, Status.OK)
    assert view(bench).ending is None


def test_connecting_again_after_all_was_done_starts_afresh(bench: Bench) -> None:
    ref = end(bench, connected(bench))
    work(bench)
    bench.later(seconds=1)
    bench.connect()
    assert claimed(bench)
    work(bench)
    assert (row(bench).ref, view(bench).status) == (ref, Status.OK)
    assert [sorted(sent["metadata"]) for sent in bench.imports()] == [["broker_connection_id", "end_user_id"]] * 2


def test_the_import_waits_for_a_deletion_that_is_under_way(bench: Bench) -> None:
    end(bench, connected(bench))
    bench.later(seconds=1)
    during(bench, "DELETE", HELD, bench.connect, (200, {}, "{}"))
    removing = bench.lease("remove")
    began = bench.clock.now()
    ending(bench).run_remove(removing)
    found = row(bench)
    assert (found.disconnected_at, found.removal, found.credential_id) == (None, None, CREDENTIAL)
    assert (job(bench, "import").due_at - began).total_seconds() <= LEASE_SECONDS
    assert claimed(bench), "the overtaken removal releases nothing"
    work(bench)
    assert len(bench.imports()) == 2, "what was deleted is imported again"
    assert view(bench).status is Status.OK


def test_the_import_is_not_sent_before_the_deletions_lease_is_over(bench: Bench) -> None:
    end(bench, connected(bench))
    bench.lease("remove")
    bench.later(seconds=1)
    bench.connect()
    work(bench)
    assert len(bench.imports()) == 1
    bench.clock.advance(LEASE_SECONDS)
    work(bench)
    assert len(bench.imports()) == 2


def test_an_overtaken_deletion_without_a_token_is_checked_instead(bench: Bench) -> None:
    end(bench, connected(bench))
    bench.later(seconds=1)

    def all_over() -> None:
        bench.connect()
        bench.clock.advance(LEASE_SECONDS)
        work(bench)
        assert row(bench).grant_sealed is None

    during(bench, "DELETE", HELD, all_over, (200, {}, "{}"))
    ending(bench).run_remove(bench.lease("remove"))
    bench.network.upsert("GET", HELD, status=404, json={})
    work(bench)
    assert view(bench).status is Status.ERROR
    assert row(bench).drift == "credential_missing"


def test_a_grant_that_was_proven_while_access_was_being_ended_is_proven_again(bench: Bench) -> None:
    end(bench, connected(bench))
    bench.later(seconds=1)
    flows: list[str] = []
    during(
        bench, "POST", DEAUTHORIZE, lambda: flows.append(bench.connect().flow_ref),
        (200, {}, json.dumps({"stripe_user_id": "acct_1"})),
    )  # fmt: skip
    ending(bench).run_revoke(bench.lease("revoke"))
    assert bench.flow(flows[0]).state == "redeeming"
    assert (row(bench).revocation, row(bench).disconnected_at is None) == (CleanUp.DONE, False)
    bench.network.upsert("GET", "https://api.stripe.com/v1/account", status=401, json={})
    bench.later(minutes=1)
    bench.flows.finish(bench.flow(flows[0]).id)
    assert bench.flow(flows[0]).failure == "grant_unusable", "the new grant died with the old: the person is told"
    assert row(bench).disconnected_at is not None


def test_access_is_not_ended_once_somebody_else_has_connected_the_account(bench: Bench) -> None:
    """The claim is free when the removal is over; the provider may be away for much longer."""
    bench.network.upsert("POST", DEAUTHORIZE, status=503)
    end(bench, connected(bench))
    work(bench)
    assert not claimed(bench)
    bench.later(seconds=1)
    flow = bench.connect(end_user="user-2").flow_ref
    bench.later(minutes=1)
    if bench.flow(flow).state != "done":
        bench.flows.finish(bench.flow(flow).id)
    assert bench.flow(flow).state == "done"
    sent = len(bench.calls(DEAUTHORIZE))
    work(bench)
    first, second = bench.rows(ConnectedAccount)
    assert (first.revocation, second.disconnected_at) == (CleanUp.NOT_NEEDED, None)
    assert len(bench.calls(DEAUTHORIZE)) == sent


def test_somebody_else_can_connect_the_account_when_the_removal_is_over_and_not_before(bench: Bench) -> None:
    bench.network.upsert("DELETE", HELD, status=503)
    end(bench, connected(bench))
    work(bench)
    bench.later(seconds=1)
    refused = bench.connect(end_user="user-2").flow_ref
    assert bench.flow(refused).failure == "account_taken"
    bench.network.upsert("DELETE", HELD, status=200, json={})
    bench.later(minutes=1)
    work(bench)
    bench.later(seconds=1)
    assert bench.flow(bench.connect(end_user="user-2").flow_ref).state == "done"
    work(bench)
    first, second = bench.rows(ConnectedAccount)
    assert (first.credential_id, second.credential_id) == (None, CREDENTIAL)
    assert bench.row(Claim).end_user_id == second.end_user_id


# --- what people read ---------------------------------------------------------------------------------


def test_what_is_pending_is_shown_for_longer_than_what_is_done(bench: Bench) -> None:
    bench.network.upsert("DELETE", HELD, status=503)
    end(bench, connected(bench))
    work(bench)
    person = row(bench).end_user_id
    bench.later(days=31)
    assert len(bench.services.connections.of_person(person, link_id=None)) == 1
    ready(bench)
    work(bench)
    bench.later(minutes=16)
    work(bench)
    assert bench.services.connections.of_person(person, link_id=None) == []


@pytest.mark.parametrize("revocation", list(CleanUp))
@pytest.mark.parametrize("removal", list(CleanUp))
def test_no_note_for_people_names_our_machinery(bench: Bench, revocation: CleanUp, removal: CleanUp) -> None:
    bench.house.connection(
        bench.house.end_user("user-1"), disconnected_at=bench.clock.now(), revocation=revocation, removal=removal
    )
    note = view(bench).note
    assert note.endswith(".")
    assert not any(word in note.lower() for word in ("sequin", "import", "token", "oauth", "credential", "grant"))
    assert "{" not in note


def test_no_secret_is_written_down(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    told = {"error": "sk_never_to_be_seen", "error_description": "Invalid API Key: sk_never_to_be_seen"}
    bench.network.upsert("POST", DEAUTHORIZE, status=401, json=told)
    end(bench, connected(bench))
    work(bench)
    written = json.dumps([[str(each) for each in found] for found in bench.rows(Job) + bench.rows(AuditRecord)])
    assert "Invalid API Key" in written
    assert "sk_never" not in written + caplog.text
    assert bench.rows(Flow)[0].grant_sealed is None
