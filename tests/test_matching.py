"""Finding Sequin's OAuth app for ours: by provider and exact client id, asked once a minute."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import responses
from structlog.testing import capture_logs

from broker.apps import OfferedApp
from broker.clock import ManualClock
from broker.errors import SequinUnauthorized, SequinUnavailable, Verdict
from broker.http import Http
from broker.matching import (
    TRUSTED_SECONDS,
    UNMATCHED_SECONDS,
    AppMatch,
    MatchState,
    OAuthAppMatch,
    OAuthApps,
    OAuthAppUnmatched,
    compare,
)
from broker.models import ConnectedAccount
from broker.providers import discover
from broker.secret import Secret
from broker.sequin import Sequin, SequinOAuthApp
from tests.connecting import CREDENTIAL, SEQUIN, github_app, open_bench
from tests.connecting import Bench as ConnectingBench
from tests.house import START, stripe_app

LIST = "https://sequin.example/v1/oauth-apps"
OURS = OfferedApp(stripe_app("stripe"), discover()["stripe"])
MATCHING = {"id": "app-1", "provider": "stripe", "client_id": "ca_stripe"}


class Bench:
    """A match, its clock, and Sequin's canned list."""

    def __init__(self, network: responses.RequestsMock, http: Http) -> None:
        self.network = network
        self.clock = ManualClock(START)
        sequin = Sequin(http, url="https://sequin.example", token=Secret("t"), clock=self.clock)
        self.match = OAuthAppMatch(sequin, self.clock)

    def know(self, *apps: dict[str, Any]) -> None:
        self.network.upsert("GET", LIST, json={"data": list(apps)})

    @property
    def asked(self) -> int:
        return len(self.network.calls)


@pytest.fixture
def bench() -> Iterator[Bench]:
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as network:
        yield Bench(network, http)
    http.close()


def test_the_one_with_this_provider_and_client_id_is_found(bench: Bench) -> None:
    bench.know(
        {"id": "app-0", "provider": "github", "client_id": "ca_stripe"},
        {"id": "app-2", "provider": "stripe", "client_id": "ca_stripe_too"},
        {"id": "app-3", "provider": "stripe", "client_id": "CA_STRIPE"},
        {"id": "app-4", "provider": None, "client_id": None},
        MATCHING,
    )
    assert bench.match.sequin_id(OURS) == "app-1"


def test_a_pinned_one_is_taken_without_asking(bench: Bench) -> None:
    pinned = OfferedApp(replace(OURS.config, sequin_oauth_app_id="pinned"), OURS.provider)
    assert bench.match.sequin_id(pinned) == "pinned"
    assert bench.asked == 0


@pytest.mark.parametrize(
    "known", [[], [MATCHING, MATCHING | {"id": "app-2"}], [MATCHING | {"client_id": " ca_stripe"}]]
)
def test_none_or_several_is_something_to_mend_in_the_configuration(bench: Bench, known: list[Any]) -> None:
    bench.know(*known)
    with pytest.raises(OAuthAppUnmatched) as unmatched:
        bench.match.sequin_id(OURS)
    assert unmatched.value.verdict is Verdict.CONFIGURATION
    assert "'stripe'" in unmatched.value.detail
    assert "SEQUIN_OAUTH_APP_ID" in unmatched.value.cure


def test_mending_it_is_noticed_within_a_second(bench: Bench) -> None:
    bench.know()
    with pytest.raises(OAuthAppUnmatched):
        bench.match.sequin_id(OURS)
    bench.know(MATCHING)
    bench.clock.advance(UNMATCHED_SECONDS + 0.1)
    assert UNMATCHED_SECONDS <= 1
    assert bench.match.sequin_id(OURS) == "app-1"


def test_the_list_is_asked_for_once_a_minute(bench: Bench) -> None:
    bench.know(MATCHING)
    for _ in range(5):
        bench.match.sequin_id(OURS)
    bench.clock.advance(TRUSTED_SECONDS)
    bench.match.sequin_id(OURS)
    assert bench.asked == 1
    bench.clock.advance(0.1)
    bench.know(MATCHING | {"id": "app-9"})
    assert bench.match.sequin_id(OURS) == "app-9"
    assert bench.asked == 2


def test_what_was_forgotten_is_asked_again(bench: Bench) -> None:
    bench.know(MATCHING)
    bench.match.sequin_id(OURS)
    bench.match.forget()
    bench.match.sequin_id(OURS)
    assert bench.asked == 2


@pytest.mark.parametrize(
    ("answer", "failure"), [({"status": 401}, SequinUnauthorized), ({"status": 503}, SequinUnavailable)]
)
def test_a_failed_question_is_not_an_answer(bench: Bench, answer: dict[str, Any], failure: type[Exception]) -> None:
    bench.network.upsert("GET", LIST, **answer)
    for _ in range(2):
        with pytest.raises(failure):
            bench.match.sequin_id(OURS)
    assert bench.asked == 2
    bench.know(MATCHING)
    assert bench.match.sequin_id(OURS) == "app-1"


def test_threads_that_need_it_together_ask_once(bench: Bench) -> None:
    bench.know(MATCHING)
    start, found = threading.Barrier(6), list[str]()

    def ask() -> None:
        start.wait(10)
        found.append(bench.match.sequin_id(OURS))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["app-1"] * 6
    assert bench.asked == 1


# --- comparing and registering ----------------------------------------------------------------------


def shown(**changes: Any) -> SequinOAuthApp:
    facts: dict[str, Any] = {"id": "app-1", "provider": "stripe", "client_id": "ca_stripe", "name": "Acme Stripe"}
    return SequinOAuthApp(**(facts | changes))


@pytest.mark.parametrize(
    ("known", "state", "says"),
    [
        ([shown()], MatchState.MATCHED, "the secret cannot be compared"),
        ([], MatchState.MISSING, "no OAuth app for stripe"),
        ([shown(client_id="ca_other")], MatchState.MISSING, "ca_other"),
        ([shown(), shown(id="app-2")], MatchState.AMBIGUOUS, "app-1, app-2"),
    ],
)
def test_each_state_has_a_sentence_and_a_cure(known: list[SequinOAuthApp], state: MatchState, says: str) -> None:
    found = compare(OURS, known)
    assert (found.state, found.client_id) == (state, "ca_stripe")
    assert says in found.sentence
    assert bool(found.cure) != found.is_usable


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ([shown(id="pinned")], MatchState.PINNED),
        ([shown(id="pinned", client_id=None)], MatchState.PINNED),
        ([shown()], MatchState.PINNED_UNKNOWN),
        ([shown(id="pinned", client_id="ca_other")], MatchState.PINNED_MISMATCH),
        ([shown(id="pinned", provider="github")], MatchState.PINNED_MISMATCH),
    ],
)
def test_a_pinned_one_is_compared_too(known: list[SequinOAuthApp], state: MatchState) -> None:
    found = compare(OfferedApp(replace(OURS.config, sequin_oauth_app_id="pinned"), OURS.provider), known)
    assert (found.state, found.sequin_id) == (state, "pinned")
    assert ("STRIPE_SEQUIN_OAUTH_APP_ID" in found.cure) != found.is_usable


APPS = f"{SEQUIN}/v1/oauth-apps"


class Register:
    """Sequin's list of OAuth apps, to which POST adds."""

    def __init__(self, bench: ConnectingBench) -> None:
        self.known: list[dict[str, Any]] = [{"id": "app-gh", "provider": "github", "client_id": "Iv1.acme"}]
        self.posted: list[dict[str, Any]] = []
        self.lose_the_answer = False
        bench.network.add_callback("GET", APPS, callback=lambda _: (200, {}, json.dumps({"data": self.known})))
        bench.network.add_callback("POST", APPS, callback=self.add)

    def add(self, request: Any) -> tuple[int, dict[str, str], str]:
        body = json.loads(request.body)
        self.posted.append(body)
        made = {"id": f"app-{len(self.known)}", "provider": body["provider"], "client_id": body["client_id"]}
        self.known.append(made)
        return (503, {}, "{}") if self.lose_the_answer else (200, {}, json.dumps(made))


@pytest.fixture
def connecting(database_url: str) -> Iterator[ConnectingBench]:
    with open_bench(database_url, apps={"stripe": stripe_app("stripe"), "github": github_app()}) as opened:
        yield opened


def states_of(found: list[AppMatch]) -> dict[str, tuple[str, bool]]:
    return {one.key: (one.state.value, one.created) for one in found}


@pytest.mark.parametrize("lose_the_answer", [False, True])
def test_a_missing_one_is_registered_once_and_held_imports_go_out(
    connecting: ConnectingBench, lose_the_answer: bool
) -> None:
    register = Register(connecting)
    register.lose_the_answer = lose_the_answer
    connecting.network.upsert("POST", f"{SEQUIN}/v1/credentials", json={"id": CREDENTIAL})
    connecting.stripe()
    connecting.connect()
    connecting.deliver()
    assert connecting.row(ConnectedAccount).import_state == "held"

    found = connecting.services.oauth_apps.sync(create=True, host="Acme")

    assert states_of(found) == {"stripe": ("matched", True), "github": ("matched", False)}
    assert register.posted == [
        {"provider": "stripe", "client_id": "ca_stripe", "client_secret": "sk_never_to_be_seen",
         "name": "Acme – Stripe (stripe)"}
    ]  # fmt: skip
    assert "never_to_be_seen" not in repr(found)
    connecting.later(seconds=UNMATCHED_SECONDS + 0.1)
    connecting.deliver()
    assert connecting.row(ConnectedAccount).import_state == "imported"
    assert connecting.imports()[0]["oauth_app_id"] == found[0].sequin_id
    # Asked again, there is nothing to do.
    assert states_of(connecting.services.oauth_apps.sync(create=True))["stripe"] == ("matched", False)
    assert len(register.posted) == 1


def test_of_many_at_the_same_moment_one_registers_and_the_others_find_it(connecting: ConnectingBench) -> None:
    register = Register(connecting)
    all_have_looked, found = threading.Barrier(4), []
    lock = threading.Lock()

    class Sequin(type(connecting.services.sequin)):  # type: ignore[misc]
        """Lets everybody look before anybody registers."""

        looked = threading.local()

        def oauth_apps(self) -> list[SequinOAuthApp]:
            with lock:
                known = connecting.services.sequin.oauth_apps()
            if not getattr(self.looked, "once", False):
                self.looked.once = True
                all_have_looked.wait(20)
            return known

        def create_oauth_app(self, **what: Any) -> SequinOAuthApp:
            with lock:
                return connecting.services.sequin.create_oauth_app(**what)

    services = connecting.services

    def sync() -> None:
        turns = OAuthApps(
            database=connecting.database, apps=connecting.apps, sequin=object.__new__(Sequin),
            match=OAuthAppMatch(services.sequin, connecting.clock), jobs=connecting.jobs,
            pause=lambda _: threading.Event().wait(0.01),
        )  # fmt: skip
        found.append(turns.sync(create=True)[0])

    threads = [threading.Thread(target=sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(register.posted) == 1
    assert [one.state for one in found] == [MatchState.MATCHED] * 4
    assert [one.created for one in found].count(True) == 1


def test_one_that_died_while_registering_is_waited_for_and_then_replaced(connecting: ConnectingBench) -> None:
    register = Register(connecting)
    assert connecting.jobs.alone("register") is not None
    services, turns = connecting.services, []

    def pause(seconds: float) -> None:
        turns.append(seconds)
        connecting.later(seconds=seconds)

    apps = OAuthApps(
        database=connecting.database, apps=connecting.apps, sequin=services.sequin,
        match=OAuthAppMatch(services.sequin, connecting.clock), jobs=connecting.jobs, pause=pause,
    )  # fmt: skip
    assert states_of(apps.sync(create=True))["stripe"] == ("matched", True)
    assert (len(register.posted), sum(turns)) == (1, 30.0)


def test_somebody_who_registers_for_too_long_is_told_of(connecting: ConnectingBench) -> None:
    register, services = Register(connecting), connecting.services
    assert connecting.jobs.alone("register") is not None
    apps = OAuthApps(
        database=connecting.database, apps=connecting.apps, sequin=services.sequin,
        match=OAuthAppMatch(services.sequin, connecting.clock), jobs=connecting.jobs, pause=lambda _: None,
    )  # fmt: skip
    found = apps.sync(create=True)[0]
    assert (found.state, found.is_usable, register.posted) == (MatchState.MISSING, False, [])
    assert "Somebody else is registering" in found.sentence


def test_without_being_told_nothing_is_registered(connecting: ConnectingBench) -> None:
    register = Register(connecting)
    assert states_of(connecting.services.oauth_apps.sync(create=False))["stripe"] == ("missing", False)
    assert register.posted == []


def test_several_that_match_are_never_made_more(connecting: ConnectingBench) -> None:
    register = Register(connecting)
    register.known += [MATCHING, MATCHING | {"id": "app-2"}]
    assert states_of(connecting.services.oauth_apps.sync(create=True))["stripe"] == ("ambiguous", False)
    assert register.posted == []


def test_what_sequin_refuses_to_register_says_why(connecting: ConnectingBench) -> None:
    Register(connecting)
    refusal = {"summary": "Validation failed", "validation_errors": {"provider": ["is not known"]}}
    connecting.network.replace("POST", APPS, status=422, json=refusal)
    found = connecting.services.oauth_apps.sync(create=True)[0]
    assert found.state is MatchState.MISSING
    assert "provider: is not known" in found.sentence


def test_while_sequin_does_not_answer_every_state_says_so(connecting: ConnectingBench) -> None:
    connecting.network.upsert("GET", APPS, status=503)
    found = connecting.services.oauth_apps.sync(create=True)
    assert {one.state for one in found} == {MatchState.UNKNOWN}
    assert len(connecting.network.calls) == 1


def test_secrets_are_never_asked_for(connecting: ConnectingBench) -> None:
    Register(connecting)
    connecting.services.oauth_apps.survey()
    assert "truncate_secrets" not in str(connecting.network.calls[0].request.url)


def test_a_refusal_of_the_oauth_app_holds_the_import_and_looks_afresh(connecting: ConnectingBench) -> None:
    register = Register(connecting)
    register.known.append(MATCHING)
    errors = {"oauth_app_id": ["does not exist"]}
    connecting.network.upsert("POST", f"{SEQUIN}/v1/credentials", status=422, json={"validation_errors": errors})
    connecting.stripe()
    connecting.connect()
    connecting.deliver()
    held = connecting.row(ConnectedAccount)
    assert (held.import_state, held.import_error) == ("held", "sequin_refused")
    assert "does not exist" in held.import_error_detail

    register.known[-1] = MATCHING | {"id": "app-new"}
    connecting.network.upsert("POST", f"{SEQUIN}/v1/credentials", json={"id": CREDENTIAL})
    connecting.later(seconds=15)
    connecting.deliver()
    assert connecting.row(ConnectedAccount).sequin_oauth_app_id == "app-new"


def test_many_that_wait_for_a_match_ask_once_and_alert_once(connecting: ConnectingBench) -> None:
    Register(connecting)
    for number in range(6):
        connecting.stripe(f"acct_{number}")
        connecting.connect(end_user=f"user-{number}")
    with capture_logs() as logs:
        connecting.worker.run_once()
    assert [event["event"] for event in logs if event["log_level"] == "error"] == ["oauth_app.unmatched"]
    assert len(connecting.calls(APPS)) == 1
