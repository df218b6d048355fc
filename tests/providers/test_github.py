"""GitHub Apps: which installations a person reaches, and which of them that person may connect."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import responses
from joserfc import jwt
from joserfc.jwk import RSAKey

from broker.errors import AccountNotPermitted, AccountSuspended, BrokerError, UnusableAnswer, Verdict
from broker.http import Http
from broker.oauth import Grant
from broker.providers.base import (
    Account,
    AccountGone,
    Notice,
    NoticeKind,
    ProviderRefused,
    ProviderUnavailable,
    WebhookInvalid,
    WebhookRefused,
)
from broker.providers.github import MOST_PAGES, PAGE_SIZE, PROVIDER, app_jwt
from broker.secret import Secret
from broker.settings import OAuthApp
from tests.connecting import ACCESS, APP_ID, GITHUB_API, PERSON, github_app, github_key, installation
from tests.connecting import person_installation as personal
from tests.house import START

GRANT = Grant(Secret(ACCESS), None, "bearer", (), None, None)
ORG = installation(40, 400, "acme")
MEMBERSHIP = f"{GITHUB_API}/user/memberships/orgs/acme"
OF_APP = f"{GITHUB_API}/app/installations/40"


@dataclass
class GitHub:
    """GitHub's canned answers, and the provider's functions on them."""

    network: responses.RequestsMock
    http: Http
    app: OAuthApp = field(default_factory=github_app)

    def reach(self, *installations: Any) -> None:
        self.network.upsert("GET", f"{GITHUB_API}/user", json={"id": PERSON, "login": "jo"})
        self.network.upsert("GET", f"{GITHUB_API}/user/installations", json={"installations": list(installations)})

    def member(self, role: str = "admin", state: str = "active", organization: Any = None) -> None:
        body = {"role": role, "state": state, "organization": organization or {"id": 400}}
        self.network.upsert("GET", MEMBERSHIP, json=body)

    def identify(self) -> tuple[Account, ...]:
        assert PROVIDER.identify is not None
        return PROVIDER.identify(self.app, GRANT, self.http.request)

    def confirm(self, account: Account | None = None) -> None:
        assert PROVIDER.confirm is not None
        PROVIDER.confirm(self.app, account or self.identify()[0], GRANT, self.http.request, START)

    def refused(self) -> BrokerError:
        """Return why an account may not be connected."""
        with pytest.raises(BrokerError) as caught:
            self.confirm()
        return caught.value


@pytest.fixture
def github() -> Iterator[GitHub]:
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as network:
        opened = GitHub(network, http)
        opened.reach(ORG)
        opened.member()
        network.upsert("GET", OF_APP, json=ORG)
        network.upsert("GET", f"{GITHUB_API}/app/installations/9", json=personal())
        yield opened
    http.close()


# --- which accounts? ------------------------------------------------------------------------------------


def test_an_installation_becomes_an_account_with_the_numeric_id(github: GitHub) -> None:
    (account,) = github.identify()
    assert (account.id, account.name, account.type, account.mode) == ("400", "acme", "Organization", "live")
    assert (account.facts["installation_id"], account.facts["login"], account.selector) == (40, "acme", "40")


def test_every_page_of_installations_is_read(github: GitHub) -> None:
    total = 2 * PAGE_SIZE + 3
    rows = [installation(n, 1000 + n, f"org-{n}") for n in range(1, total + 1)]
    asked: list[int] = []

    def page(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        query = parse_qs(urlsplit(str(request.url)).query)
        number = int(query["page"][0])
        asked.append(number)
        assert query["per_page"] == [str(PAGE_SIZE)]
        shown = rows[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
        return 200, {}, json.dumps({"total_count": total, "installations": shown})

    github.network.remove("GET", f"{GITHUB_API}/user/installations")
    github.network.add_callback("GET", f"{GITHUB_API}/user/installations", callback=page)
    assert [account.facts["installation_id"] for account in github.identify()] == [row["id"] for row in rows]
    assert asked == [1, 2, 3]


def test_paging_ends_even_if_github_never_does(github: GitHub) -> None:
    github.reach(*[installation(n, n, f"org-{n}") for n in range(PAGE_SIZE)])
    github.identify()
    assert len(github.network.calls) == 1 + MOST_PAGES


def test_installations_of_other_apps_and_of_enterprises_are_left_out(github: GitHub) -> None:
    github.reach(
        installation(1, 401, "foreign", app_id=APP_ID + 1),
        installation(2, 402, "no-app", app_id=None),
        installation(3, 403, "enterprise", account={"type": "Enterprise"}),
        installation(4, 404, "no-type", account={"type": None}),
        installation(5, 405, "no-id", account={"id": None}),
        installation(6, 406, "text-id", account={"id": "406"}),
        {"id": 7, "app_id": APP_ID, "account": None},
        {"id": "8", "app_id": APP_ID, "account": {"id": 1, "login": "x", "type": "User"}},
        "nonsense",
        ORG,
    )
    assert [account.id for account in github.identify()] == ["400"]


def test_no_installation_is_no_account(github: GitHub) -> None:
    github.reach()
    assert github.identify() == ()


def test_github_is_asked_in_a_version_we_know(github: GitHub) -> None:
    github.confirm()
    for call in github.network.calls:
        assert call.request.headers["X-GitHub-Api-Version"] == "2022-11-28"
        assert call.request.headers["Accept"] == "application/vnd.github+json"


def test_a_person_without_an_id_cannot_be_judged(github: GitHub) -> None:
    github.network.upsert("GET", f"{GITHUB_API}/user", json={"login": "jo"})
    with pytest.raises(UnusableAnswer):
        github.identify()


# --- may this person connect it? ------------------------------------------------------------------------


def test_an_admin_connects_an_organisation(github: GitHub) -> None:
    github.confirm()


@pytest.mark.parametrize(
    ("role", "state"), [("member", "active"), ("admin", "pending"), ("billing_manager", "active"), ("", "")]
)
def test_whoever_is_not_an_active_admin_does_not(github: GitHub, role: str, state: str) -> None:
    github.member(role, state)
    assert isinstance(github.refused(), AccountNotPermitted)


def test_any_active_member_is_enough_where_the_settings_say_so(github: GitHub) -> None:
    github.app = github_app(org_proof="member")
    github.member("member")
    github.confirm()
    github.member("member", "pending")
    assert isinstance(github.refused(), AccountNotPermitted)


def test_membership_of_another_organisation_is_no_proof(github: GitHub) -> None:
    for other in ({"id": 999}, {"id": None}, "acme"):
        github.member(organization=other)
        assert isinstance(github.refused(), AccountNotPermitted)


def test_no_membership_at_all_is_no_proof(github: GitHub) -> None:
    github.network.upsert("GET", MEMBERSHIP, status=404, json={"message": "Not Found"})
    assert isinstance(github.refused(), AccountNotPermitted)


def test_not_being_allowed_to_ask_is_a_setting_to_mend_and_says_which(github: GitHub) -> None:
    github.network.upsert("GET", MEMBERSHIP, status=403, json={"message": "Resource not accessible by integration"})
    refusal = github.refused()
    assert isinstance(refusal, ProviderRefused)
    assert refusal.verdict is Verdict.CONFIGURATION
    assert "Members: read" in refusal.detail


@pytest.mark.parametrize("headers", [{"Retry-After": "30"}, {"X-RateLimit-Remaining": "0"}])
@pytest.mark.parametrize("url", [MEMBERSHIP, OF_APP, f"{GITHUB_API}/user"])
def test_a_rate_limit_is_not_taken_for_a_missing_permission(github: GitHub, url: str, headers: dict[str, str]) -> None:
    github.network.upsert("GET", url, status=403, headers=headers, json={"message": "secondary rate limit"})
    assert isinstance(github.refused(), ProviderUnavailable)


def test_a_person_connects_their_own_account_without_any_membership(github: GitHub) -> None:
    github.reach(personal())
    github.confirm()
    assert not [call for call in github.network.calls if "memberships" in str(call.request.url)]


def test_nobody_connects_somebody_elses_personal_account(github: GitHub) -> None:
    github.reach(personal(owner=PERSON + 1))
    assert isinstance(github.refused(), AccountNotPermitted)


@pytest.mark.parametrize("account", [{"id": 999, "login": "acme", "type": "Organization"}, {}])
def test_the_app_itself_must_see_the_same_owner(github: GitHub, account: Any) -> None:
    github.network.upsert("GET", OF_APP, json=ORG | {"account": account})
    assert isinstance(github.refused(), AccountNotPermitted)


@pytest.mark.parametrize("account", [None, [], "acme", 400])
def test_an_owner_that_cannot_be_read_is_not_the_persons_fault(github: GitHub, account: Any) -> None:
    github.network.upsert("GET", OF_APP, json=ORG | {"account": account})
    assert isinstance(github.refused(), UnusableAnswer)


def test_the_app_itself_must_be_the_one_installed(github: GitHub) -> None:
    github.network.upsert("GET", OF_APP, json=ORG | {"app_id": APP_ID + 1})
    assert isinstance(github.refused(), AccountNotPermitted)


def test_a_suspended_installation_is_told_as_such(github: GitHub) -> None:
    github.network.upsert("GET", OF_APP, json=ORG | {"suspended_at": "2026-11-01T00:00:00Z"})
    assert isinstance(github.refused(), AccountSuspended)


def test_an_app_key_github_does_not_accept_is_a_setting_to_mend_and_not_the_persons_token(github: GitHub) -> None:
    github.network.upsert("GET", OF_APP, status=401, json={"message": "A JSON web token could not be decoded"})
    refusal = github.refused()
    assert isinstance(refusal, ProviderRefused)
    assert refusal.verdict is Verdict.CONFIGURATION


def test_a_private_key_that_is_none_is_a_setting_to_mend(github: GitHub) -> None:
    github.app = github_app(private_key=Secret("SENTINEL not a key"))
    refusal = github.refused()
    assert isinstance(refusal, ProviderRefused)
    assert "SENTINEL" not in str(refusal)


# --- the app's own token --------------------------------------------------------------------------------


def test_the_apps_token_is_signed_with_its_key_and_lives_ten_minutes_at_most(github: GitHub) -> None:
    token = app_jwt(github.app, START)
    public = RSAKey.import_key(github_key().as_pem(private=False))
    decoded = jwt.decode(token.reveal(), public, algorithms=["RS256"])
    now = int(START.timestamp())
    assert decoded.header["alg"] == "RS256"
    assert decoded.claims == {"iat": now - 60, "exp": now + 540, "iss": "Iv1.acme"}
    assert "ey" not in repr(token)


def test_the_apps_token_goes_to_the_apps_endpoint_alone_and_the_persons_to_the_others(github: GitHub) -> None:
    github.confirm()
    by_url = {str(call.request.url): call.request.headers["Authorization"] for call in github.network.calls}
    of_app = by_url.pop(OF_APP).removeprefix("Bearer ")
    assert jwt.decode(of_app, github_key(), algorithms=["RS256"]).claims["iss"] == "Iv1.acme"
    assert set(by_url.values()) == {f"Bearer {ACCESS}"}


# --- addresses ------------------------------------------------------------------------------------------


def test_a_login_is_quoted_wherever_it_stands_in_an_address(github: GitHub) -> None:
    login = "a/../b?c#d e"
    github.reach(installation(40, 400, login))
    github.network.upsert("GET", f"{GITHUB_API}/user/memberships/orgs/a%2F..%2Fb%3Fc%23d%20e", json={
        "role": "admin", "state": "active", "organization": {"id": 400},
    })  # fmt: skip
    github.confirm()
    (account,) = github.identify()
    assert PROVIDER.manage_url is not None
    address = PROVIDER.manage_url(github.app, account)
    assert address == "https://github.com/organizations/a%2F..%2Fb%3Fc%23d%20e/settings/installations/40"


def test_a_persons_installation_is_managed_in_their_own_settings(github: GitHub) -> None:
    github.reach(personal())
    assert PROVIDER.manage_url is not None
    assert PROVIDER.manage_url(github.app, github.identify()[0]) == "https://github.com/settings/installations/9"


def test_enterprise_addresses_are_used_throughout(github: GitHub) -> None:
    github.app = github_app(url="https://ghe.example", api_url="https://ghe.example/api/v3")
    profile = PROVIDER.profile(github.app)
    assert profile.authorize_url == "https://ghe.example/login/oauth/authorize"
    assert profile.token_url == "https://ghe.example/login/oauth/access_token"
    assert profile.issuer == "https://ghe.example/login/oauth"
    for path, body in (("/user", {"id": PERSON}), ("/user/installations", {"installations": [ORG]})):
        github.network.get(f"https://ghe.example/api/v3{path}", json=body)
    assert [account.id for account in github.identify()] == ["400"]
    assert PROVIDER.install_url is not None
    assert PROVIDER.install_url(github.app, Secret("s")).startswith("https://ghe.example/")


def test_the_person_always_picks_which_github_account_it_is() -> None:
    assert PROVIDER.profile(github_app()).authorize_params == {"prompt": "select_account"}


# --- how it is, later -----------------------------------------------------------------------------------


def probed(github: GitHub) -> Account:
    assert PROVIDER.probe is not None
    facts = {"installation_id": 40, "login": "old-name", "person_id": 7}
    account = Account("400", "old-name", "Organization", "live", facts)
    found = PROVIDER.probe(github.app, account, None, github.http.request, START).account
    assert found is not None
    return found


def test_a_probe_is_one_call_as_the_app_and_follows_a_rename(github: GitHub) -> None:
    found = probed(github)
    assert (found.id, found.name, found.facts["login"], found.facts["person_id"]) == ("400", "acme", "acme", 7)
    (call,) = github.network.calls
    assert str(call.request.url) == OF_APP


def test_an_uninstalled_app_is_told_as_gone_and_a_suspended_one_as_suspended(github: GitHub) -> None:
    github.network.upsert("GET", OF_APP, status=404, json={"message": "Not Found"})
    with pytest.raises(AccountGone):
        probed(github)
    github.network.upsert("GET", OF_APP, json=ORG | {"suspended_at": "2026-11-01T00:00:00Z"})
    with pytest.raises(AccountSuspended):
        probed(github)
    github.network.upsert("GET", OF_APP, status=401, json={})
    with pytest.raises(ProviderRefused):
        probed(github)


# --- webhooks -------------------------------------------------------------------------------------------

HOOKS = (Secret("new-secret"), Secret("It's a Secret to Everybody"))


def hook(event: str, content: Any, *, secret: str = "new-secret", **headers: str) -> Notice:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    sent = {"X-GitHub-Event": event, "X-GitHub-Delivery": "d-1", "X-Hub-Signature-256": signature} | headers
    assert PROVIDER.webhook is not None
    return PROVIDER.webhook(replace(github_app(), webhook_secrets=HOOKS), sent, body, START)


def test_githubs_own_signature_vector_is_taken() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    with pytest.raises(WebhookInvalid):
        # The signature passes; the body of the vector is no JSON.
        hook("ping", b"Hello, World!", **{"X-Hub-Signature-256": signature})


@pytest.mark.parametrize("signature", ["", "sha256=", "sha1=abc", "sha256=" + "0" * 64, "sha256=é", "sha256=\ud800"])
def test_what_is_not_signed_with_one_of_the_secrets_is_refused(signature: str) -> None:
    with pytest.raises(WebhookRefused):
        hook("ping", {}, **{"X-Hub-Signature-256": signature})
    with pytest.raises(WebhookRefused):
        hook("ping", {}, secret="another")


def test_every_secret_is_good_while_one_is_replaced() -> None:
    assert hook("ping", {"zen": "x"}, secret="It's a Secret to Everybody").kind is NoticeKind.NOTHING


@pytest.mark.parametrize("action", ["deleted", "suspend", "unsuspend", "created", "new_permissions_accepted"])
def test_what_happens_to_an_installation_makes_us_ask(action: str) -> None:
    notice = hook("installation", {"action": action, "installation": ORG, "sender": {"id": 1}})
    assert (notice.kind, notice.name, notice.account_id, notice.mode, notice.delivery_id) == (
        NoticeKind.CHANGED, f"installation.{action}", "400", "live", "d-1",
    )  # fmt: skip


def test_an_approval_names_who_had_asked() -> None:
    notice = hook("installation", {"action": "created", "installation": ORG, "requester": {"id": 7, "login": "jo"}})
    assert (notice.kind, notice.account_id) == (NoticeKind.APPROVED, "400")
    assert notice.facts == {
        "requester_id": "7", "asked": {"id": 400, "login": "acme", "installation_id": 40, "installed": True},
    }  # fmt: skip


def test_a_person_who_takes_the_authorization_back_ends_no_installation() -> None:
    notice = hook("github_app_authorization", {"action": "revoked", "sender": {"id": 7, "login": "jo"}})
    assert (notice.kind, notice.account_id, notice.facts) == (NoticeKind.CHANGED, None, {"person_id": 7})


@pytest.mark.parametrize(
    ("event", "content"),
    [
        ("push", {"ref": "x"}),
        ("installation", {"action": "created", "installation": ORG | {"app_id": APP_ID + 1}}),
        ("installation", {"action": "created", "installation": ORG | {"account": None}}),
        ("installation", {"action": "something_new", "installation": ORG}),
        ("github_app_authorization", {"action": "revoked", "sender": None}),
    ],
)
def test_other_events_mean_nothing(event: str, content: Any) -> None:
    assert hook(event, content).kind is NoticeKind.NOTHING


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"[" * 5000, {"action": "deleted"}])
def test_a_signed_body_that_is_not_what_it_says_is_invalid(content: Any) -> None:
    with pytest.raises(WebhookInvalid):
        hook("installation", content)


def test_a_delivery_without_an_id_is_invalid() -> None:
    for given in ("", "x" * 129, "a\nb"):
        with pytest.raises(WebhookInvalid):
            hook("ping", {}, **{"X-GitHub-Delivery": given})


def test_the_installation_page_lies_elsewhere_on_enterprise_servers() -> None:
    assert PROVIDER.install_url is not None
    for url, start in (
        ("https://github.com", "https://github.com/apps/acme-broker/"),
        ("https://acme.ghe.com", "https://acme.ghe.com/apps/acme-broker/"),
        ("https://ghe.example", "https://ghe.example/github-apps/acme-broker/"),
    ):
        assert PROVIDER.install_url(github_app(url=url), Secret("s")).startswith(f"{start}installations/new?")
