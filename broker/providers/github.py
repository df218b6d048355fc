"""GitHub Apps: plain OAuth first, then the person's installations.

Source: docs.github.com, "Generating a user access token for a GitHub App", "About the setup URL",
and the REST reference for apps.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from pydantic import Field

from broker.errors import AccountNotPermitted, AccountSuspended, UnusableAnswer
from broker.http import Answer
from broker.oauth import Grant, OAuthProfile
from broker.providers.base import (
    Account,
    AccountGone,
    Approval,
    Call,
    Condition,
    Finding,
    Notice,
    NoticeKind,
    Provider,
    ProviderRefused,
    WebhookInvalid,
    WebhookRefused,
    clean,
    is_limited,
    read_json,
    read_object,
)
from broker.providers.github_api import (
    API_VERSION,
    GitHubAddresses,
    end_token,
    get,
    github_profile,
    is_enterprise_server,
    is_id,
    login_of,
    person,
    require_gone,
)
from broker.secret import Secret
from broker.settings import OAuthApp
from broker.text import translatable

PAGE_SIZE = 100
MOST_PAGES = 10
"""A person with more than a thousand installations chooses among the first thousand."""


class GitHubOptions(GitHubAddresses):
    """The GitHub App's registration besides its client id and secret."""

    app_slug: Annotated[str, Field(description="The App’s slug: the last part of its public address.")]
    app_id: Annotated[int, Field(description="The App’s numeric id.")]
    private_key: Annotated[Secret, Field(description="The App’s private key: PEM, on one line with \\n.")]
    org_proof: Annotated[
        Literal["admin", "member"],
        Field(description="What proves that a person may connect an organisation: being its `admin`, or any `member`."),
    ] = "admin"
    uninstall_on_disconnect: Annotated[
        bool,
        Field(
            description="Whether a disconnect also removes the App from the account; everybody’s access through it "
            "ends with that."
        ),
    ] = False


def _options(app: OAuthApp) -> GitHubOptions:
    assert isinstance(app.options, GitHubOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. A GitHub App's permissions come from its registration; scopes are ignored."""
    return github_profile(app, ())


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the accounts this App is installed on and this person can reach."""
    user = person(app, grant.access_token, call)
    found = []
    for installation in _installations(app, grant, call):
        account = _account(installation, person_id=user["id"])
        if account is not None and installation.get("app_id") == _options(app).app_id:
            found.append(account)
    return tuple(found)


def requester(app: OAuthApp, grant: Grant, call: Call) -> str:
    """Return the id of the person behind a grant, to know again who asked an owner."""
    return str(person(app, grant.access_token, call)["id"])


def _installations(app: OAuthApp, grant: Grant, call: Call) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for page in range(1, MOST_PAGES + 1):
        content = get(app, grant.access_token, call, f"/user/installations?per_page={PAGE_SIZE}&page={page}")
        rows = content.get("installations")
        if not isinstance(rows, list):
            raise UnusableAnswer("GET /user/installations: no list")
        found += [row for row in rows if isinstance(row, dict)]
        if len(rows) < PAGE_SIZE:
            break
    return found


def _account(installation: Mapping[str, Any], *, person_id: object) -> Account | None:
    """Return the account behind an installation; None for kinds that cannot be imported, such as enterprises."""
    owner = installation.get("account")
    if not isinstance(owner, dict) or not is_id(installation.get("id")):
        return None
    if owner.get("type") not in ("User", "Organization") or not is_id(owner.get("id")):
        return None
    login = login_of(owner)
    return Account(
        # The numeric id: logins can be renamed and taken by somebody else.
        id=str(owner["id"]),
        name=login,
        type=owner["type"],
        mode="live",
        facts={"installation_id": installation["id"], "login": login, "person_id": person_id},
        selector=str(installation["id"]),
    )


def confirm(app: OAuthApp, account: Account, grant: Grant, call: Call, now: datetime) -> None:
    """Prove that this person may connect this account: seeing an installation takes no more than read access."""
    if account.type == "User":
        if account.id != str(account.facts["person_id"]):
            raise AccountNotPermitted("a personal account of somebody else")
    else:
        _prove_membership(app, account, grant, call)
    _compare_installation(app, account, call, now)


def _prove_membership(app: OAuthApp, account: Account, grant: Grant, call: Call) -> None:
    path = f"/user/memberships/orgs/{quote(account.facts['login'], safe='')}"
    answer = call("GET", f"{_options(app).api_url}{path}", bearer=grant.access_token, headers=API_VERSION)
    if answer.status == 404:
        raise AccountNotPermitted("not a member of the organisation")
    if answer.status == 403 and not is_limited(answer):
        raise ProviderRefused("GET /user/memberships/orgs: 403, the GitHub App needs the permission Members: read")
    membership = read_object(answer, what="GET /user/memberships/orgs")
    organization = membership.get("organization")
    same = isinstance(organization, dict) and str(organization.get("id")) == account.id
    is_admin = membership.get("role") == "admin" or _options(app).org_proof == "member"
    if not same or membership.get("state") != "active" or not is_admin:
        raise AccountNotPermitted("not an owner of the organisation")


def _compare_installation(app: OAuthApp, account: Account, call: Call, now: datetime) -> None:
    """Ask as the App itself, which sees what the person's token does not show: who owns it, and suspension."""
    answer = _as_app(app, call, now, f"/app/installations/{account.facts['installation_id']}")
    installation = read_object(answer, what="GET /app/installations")
    owner = installation.get("account")
    if not isinstance(owner, dict):
        raise UnusableAnswer("GET /app/installations: no account")
    if str(owner.get("id")) != account.id:
        raise AccountNotPermitted("the installation belongs to another account")
    if installation.get("app_id") != _options(app).app_id:
        raise AccountNotPermitted("the installation belongs to another app")
    _require_active(installation)


def _require_active(installation: Mapping[str, Any]) -> None:
    if installation.get("suspended_at") is not None:
        raise AccountSuspended("suspended_at is set")


def _as_app(app: OAuthApp, call: Call, now: datetime, path: str) -> Answer:
    answer = call("GET", f"{_options(app).api_url}{path}", bearer=app_jwt(app, now), headers=API_VERSION)
    if answer.status == 401:
        # Not the person's token but our own: no person can mend that.
        raise ProviderRefused(f"GET {path.partition('?')[0]}: 401, GitHub does not accept the private key")
    return answer


def app_jwt(app: OAuthApp, now: datetime) -> Secret:
    """Return a token that proves we are the App: RS256, 60 s in the past, 9 minutes ahead (GitHub takes 10).

    Raises ProviderRefused when the private key cannot be used.
    """
    issued = int(now.timestamp())
    claims = {"iat": issued - 60, "exp": issued + 540, "iss": app.client_id}
    try:
        return Secret(jwt.encode({"alg": "RS256"}, claims, _signing_key(_options(app).private_key)))
    except (ValueError, TypeError, JoseError):
        # `from None`: what is wrong with a key is told by quoting it.
        raise ProviderRefused("the private key is not an RSA key in PEM form") from None


@cache
def _signing_key(private_key: Secret) -> RSAKey:
    # Reading a key checks its numbers, which takes fifty times as long as signing with it.
    return RSAKey.import_key(private_key.reveal())


def install_url(app: OAuthApp, state: Secret) -> str:
    """Return the page where the person installs the App; GitHub hands `state` back to the Setup URL."""
    options = _options(app)
    place = "github-apps" if is_enterprise_server(app) else "apps"
    return f"{options.url}/{place}/{options.app_slug}/installations/new?{urlencode({'state': state.reveal()})}"


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return a `github_app` credential; it holds no secret, so it can be built again at any time."""
    return {
        "kind": PROVIDER.kind,
        "account_type": account.type,
        "account_login": account.facts["login"],
        "installation_id": account.facts["installation_id"],
    }


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account; a login can be renamed, an installation cannot."""
    return {"account_type": account.type, "installation_id": account.facts["installation_id"]}


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """End the one token we hold, never the person's whole grant; uninstall only where the settings say so."""
    ended = grant is not None and grant.access_token is not None
    if grant is not None:
        end_token(app, grant, call)
    if _options(app).uninstall_on_disconnect:
        _uninstall(app, account, call, now)
        ended = True
    return ended


def _uninstall(app: OAuthApp, account: Account, call: Call, now: datetime) -> None:
    url = f"{_options(app).api_url}/app/installations/{account.facts['installation_id']}"
    answer = call("DELETE", url, bearer=app_jwt(app, now), headers=API_VERSION)
    require_gone(answer, what="DELETE /app/installations")


def stays(app: OAuthApp) -> str:
    """Return what a disconnect leaves at GitHub."""
    return "" if _options(app).uninstall_on_disconnect else translatable("the app’s installation")


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where the account's owner reviews or removes the installation."""
    options = _options(app)
    number = account.facts["installation_id"]
    if account.type == "Organization":
        return f"{options.url}/organizations/{quote(account.facts['login'], safe='')}/settings/installations/{number}"
    return f"{options.url}/settings/installations/{number}"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the App's own registration, which only the App itself can ask about."""
    if app.scopes:
        yield Finding("scopes", "warn", "GitHub Apps ignore scopes.", "Remove them; set permissions in the App.")
    else:
        yield Finding("scopes", "pass", "Permissions come from the GitHub App’s registration.")
    try:
        signed = app_jwt(app, now)
    except ProviderRefused:
        mend = "Download a private key from the App’s settings and give the whole PEM file."
        yield Finding("private_key", "fail", "The private key cannot be read.", mend)
        yield Finding("registration", "skip", "GitHub can be asked only with the private key.")
        return
    yield Finding("private_key", "pass", "The private key can be read.")
    answer = call("GET", f"{_options(app).api_url}/app", bearer=signed, headers=API_VERSION)
    if answer.status in (401, 404):
        mend = "Compare client id and private key with the App’s settings, and this machine’s clock with the time."
        yield Finding("registration", "fail", "GitHub does not accept the App’s signature.", mend)
        return
    yield from _compare_registration(app, read_object(answer, what="GET /app"))


def _compare_registration(app: OAuthApp, shown: Mapping[str, Any]) -> Iterator[Finding]:
    options = _options(app)
    ours = {"id": options.app_id, "slug": options.app_slug, "client_id": app.client_id}
    wrong = [f"{name} {clean(str(shown.get(name)))}, not {value}" for name, value in ours.items() if name in shown
             and shown[name] != value]  # fmt: skip
    if wrong:
        mend = "Copy app id, slug and client id from the same App’s settings page."
        yield Finding("registration", "fail", f"GitHub knows this App with {'; '.join(wrong)}.", mend)
    else:
        yield Finding("registration", "pass", f"GitHub knows the App {options.app_slug} with the id {options.app_id}.")
    permissions = shown.get("permissions")
    if isinstance(permissions, dict) and "members" not in permissions:
        mend = "Give the App the organisation permission Members: read; owners then have to accept it."
        yield Finding("permissions", "warn", "Nobody can connect an organisation without Members: read.", mend)


# --- how a connected account is, later -----------------------------------------------------------------


def probe(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> Condition:
    """Read the installation afresh, as the App: nobody's token is needed, and no event of GitHub's is either."""
    answer = _as_app(app, call, now, f"/app/installations/{account.facts['installation_id']}")
    if answer.status == 404:
        raise AccountGone("the App is no longer installed")
    installation = read_object(answer, what="GET /app/installations")
    shown = _account(installation, person_id=account.facts.get("person_id"))
    if shown is None:
        raise UnusableAnswer("GET /app/installations: no account")
    if shown.id != account.id:
        raise AccountGone("the installation belongs to another account")
    _require_active(installation)
    return Condition(account=shown)


# --- an owner's approval --------------------------------------------------------------------------------


def approval(app: OAuthApp, requester_id: str, facts: Mapping[str, Any], call: Call, now: datetime) -> Approval:
    """Return how this person's requests to owners stand.

    What proves a request is GitHub's own word: its list of open requests, which names who asked whom, or a signed
    `installation.created` that names who asked. A request that is no longer open was approved if the App is installed
    there now, else declined. Everything is asked as the App.
    """
    asked = {str(one["id"]): one for one in facts.get("asked", ()) if isinstance(one, dict) and "id" in one}
    still_open, told = _open_requests(app, requester_id, call, now)
    found = None
    for number, one in list(asked.items()):
        if not one.get("installed") and (number in still_open or not told):
            continue
        account = _installed_on(app, one, requester_id, call, now)
        if account is None:
            del asked[number]
        found = found or account
    asked |= {number: one for number, one in still_open.items() if number not in asked}
    return Approval(found, {"asked": list(asked.values())}, tuple(str(one.get("login")) for one in asked.values()))


def _open_requests(
    app: OAuthApp, requester_id: str, call: Call, now: datetime
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the accounts whose owners this person has asked, by id, and whether GitHub told."""
    found: dict[str, dict[str, Any]] = {}
    for page in range(1, MOST_PAGES + 1):
        path = f"/app/installation-requests?per_page={PAGE_SIZE}&page={page}"
        answer = _as_app(app, call, now, path)
        if answer.status == 404:
            # An older enterprise host: then only the webhook tells.
            return found, False
        rows = read_json(answer, what="GET /app/installation-requests")
        if not isinstance(rows, list):
            raise UnusableAnswer("GET /app/installation-requests: no list")
        for row in rows:
            who, owner = (row.get("requester"), row.get("account")) if isinstance(row, dict) else (None, None)
            if not isinstance(who, dict) or not isinstance(owner, dict) or str(who.get("id")) != requester_id:
                continue
            if is_id(owner.get("id")) and login_of(owner):
                found[str(owner["id"])] = {"id": owner["id"], "login": login_of(owner)}
        if len(rows) < PAGE_SIZE:
            break
    return found, True


def _installed_on(
    app: OAuthApp, one: Mapping[str, Any], requester_id: str, call: Call, now: datetime
) -> Account | None:
    """Return the account that was asked for when the App is installed on it. Raises AccountSuspended."""
    number = one.get("installation_id")
    login = quote(str(one.get("login")), safe="")
    answer = _as_app(app, call, now, f"/app/installations/{number}" if number else f"/orgs/{login}/installation")
    if answer.status == 404:
        return None
    installation = read_object(answer, what="GET installation")
    account = _account(installation, person_id=int(requester_id))
    # By id: a name may be somebody else's by now.
    if account is None or account.id != str(one.get("id")) or installation.get("app_id") != _options(app).app_id:
        return None
    _require_active(installation)
    return account


# --- webhooks -------------------------------------------------------------------------------------------


def webhook(app: OAuthApp, headers: Mapping[str, str], body: bytes, now: datetime) -> Notice:
    """Verify a delivery and say what it means.

    There is no time in GitHub's scheme, so that nothing is believed but that it is worth asking again; who asked an
    owner is the exception, and harmless when it is repeated.

    A person who revokes the App's authorization ends their own token, which is not what was imported: the
    installation stays, and with it the connection. So that event, too, only makes us ask again.
    """
    # Names of headers have no case.
    given = {name.lower(): value for name, value in headers.items()}
    _require_signature(app, given.get("x-hub-signature-256", ""), body)
    named, delivery_id = given.get("x-github-event", ""), given.get("x-github-delivery", "")
    content = _content(body)
    action = clean(content.get("action"), limit=40)
    name = clean(f"{named}.{action}" if action else named, limit=80)
    if not named or not delivery_id or len(delivery_id) > 128 or not delivery_id.isprintable():
        raise WebhookInvalid("no X-GitHub-Event or X-GitHub-Delivery")
    if named == "installation":
        return _about_installation(app, name, delivery_id, content)
    sender = content.get("sender")
    if name == "github_app_authorization.revoked" and isinstance(sender, dict) and is_id(sender.get("id")):
        return Notice(NoticeKind.CHANGED, name, delivery_id, mode="live", facts={"person_id": sender["id"]})
    return Notice(NoticeKind.NOTHING, name, delivery_id)


def _require_signature(app: OAuthApp, given: str, body: bytes) -> None:
    matches = False
    for secret in app.webhook_secrets:
        expected = "sha256=" + hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
        # As bytes: text outside ASCII would fail to compare rather than differ.
        matches |= hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))
    if not matches:
        raise WebhookRefused("X-Hub-Signature-256 is missing or wrong")


def _content(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise WebhookInvalid("not JSON") from None
    if not isinstance(content, dict):
        raise WebhookInvalid("not a JSON object")
    return content


def _about_installation(app: OAuthApp, name: str, delivery_id: str, content: Mapping[str, Any]) -> Notice:
    installation, asker = content.get("installation"), content.get("requester")
    if not isinstance(installation, dict):
        raise WebhookInvalid("no installation")
    account = _account(installation, person_id=None)
    if account is None or installation.get("app_id") != _options(app).app_id:
        return Notice(NoticeKind.NOTHING, name, delivery_id)
    if name == "installation.created" and isinstance(asker, dict) and is_id(asker.get("id")):
        facts = {
            "requester_id": str(asker["id"]),
            "asked": {
                "id": int(account.id), "login": account.name, "installation_id": installation["id"], "installed": True,
            },
        }  # fmt: skip
        return Notice(NoticeKind.APPROVED, name, delivery_id, account.id, "live", facts)
    known = name.partition(".")[2] in ("created", "deleted", "suspend", "unsuspend", "new_permissions_accepted")
    kind = NoticeKind.CHANGED if known else NoticeKind.NOTHING
    return Notice(kind, name, delivery_id, account.id, "live")


PROVIDER = Provider(
    name="github",
    title="GitHub",
    sequin_provider="github",
    kind="github_app",
    options=GitHubOptions,
    profile=profile,
    identify=identify,
    confirm=confirm,
    properties=properties,
    identity=identity,
    install_url=install_url,
    requester=requester,
    approval=approval,
    probe=probe,
    probe_needs_grant=False,
    # GitHub gives an App 5,000 calls an hour; people who connect and approvals need some of them.
    probes_per_second=0.5,
    webhook=webhook,
    manage_url=manage_url,
    diagnose=diagnose,
    revoke=revoke,
    end_token=end_token,
    stays=stays,
    reads=("the repositories you choose", "issues and pull requests", "organisation members"),
    never="see your password",
    import_needs_grant=False,
    code_life=timedelta(minutes=10),
)
