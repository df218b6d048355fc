"""GitHub Apps: plain OAuth first, then the person's installations.

Source: docs.github.com, "Generating a user access token for a GitHub App", "About the setup URL",
and the REST reference for apps.
"""

from __future__ import annotations

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
    Call,
    Finding,
    Provider,
    ProviderRefused,
    clean,
    is_limited,
    read_json,
    read_object,
)
from broker.secret import Secret
from broker.settings import AppOptions, HttpAddress, OAuthApp
from broker.text import translatable

API_VERSION = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
PAGE_SIZE = 100
MOST_PAGES = 10
"""A person with more than a thousand installations chooses among the first thousand."""


class GitHubOptions(AppOptions):
    """The GitHub App's registration besides its client id and secret."""

    app_slug: str
    app_id: int
    private_key: Secret
    url: Annotated[HttpAddress, Field(json_schema_extra={"env": "GITHUB_URL"})] = "https://github.com"
    api_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "GITHUB_API_URL"})] = "https://api.github.com"
    # What proves that a person may connect an organisation: being its admin, or any active member.
    org_proof: Literal["admin", "member"] = "admin"
    # Whether a disconnect also removes the App from the account; everybody's access through it ends with that.
    uninstall_on_disconnect: bool = False


def _options(app: OAuthApp) -> GitHubOptions:
    assert isinstance(app.options, GitHubOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. GitHub documents the secret in the body and needs it with PKCE too."""
    web = _options(app).url
    return OAuthProfile(
        authorize_url=f"{web}/login/oauth/authorize",
        token_url=f"{web}/login/oauth/access_token",
        token_auth="client_secret_post",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        # A GitHub App's permissions come from its registration; scopes are ignored.
        scopes=(),
        pkce=True,
        issuer=f"{web}/login/oauth",
        # Without it GitHub bounces an already authorised person straight back with whichever account is signed in.
        authorize_params={"prompt": "select_account"},
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the accounts this App is installed on and this person can reach."""
    user = _get(app, grant, call, "/user")
    if not isinstance(user.get("id"), int):
        raise UnusableAnswer("GET /user: no id")
    found = []
    for installation in _installations(app, grant, call):
        account = _account(installation, person_id=user["id"])
        if account is not None and installation.get("app_id") == _options(app).app_id:
            found.append(account)
    return tuple(found)


def _get(app: OAuthApp, grant: Grant, call: Call, path: str) -> dict[str, Any]:
    url = f"{_options(app).api_url}{path}"
    return read_object(call("GET", url, bearer=grant.access_token, headers=API_VERSION), what=f"GET {path}")


def _installations(app: OAuthApp, grant: Grant, call: Call) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for page in range(1, MOST_PAGES + 1):
        content = _get(app, grant, call, f"/user/installations?per_page={PAGE_SIZE}&page={page}")
        rows = content.get("installations")
        if not isinstance(rows, list):
            raise UnusableAnswer("GET /user/installations: no list")
        found += [row for row in rows if isinstance(row, dict)]
        if len(rows) < PAGE_SIZE:
            break
    return found


def _account(installation: Mapping[str, Any], *, person_id: int) -> Account | None:
    """Return the account behind an installation; None for kinds that cannot be imported, such as enterprises."""
    owner = installation.get("account")
    if not isinstance(owner, dict) or not isinstance(installation.get("id"), int):
        return None
    if owner.get("type") not in ("User", "Organization") or not isinstance(owner.get("id"), int):
        return None
    login = clean(owner.get("login"))
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
    number = account.facts["installation_id"]
    url = f"{_options(app).api_url}/app/installations/{number}"
    answer = call("GET", url, bearer=app_jwt(app, now), headers=API_VERSION)
    if answer.status == 401:
        # Not the person's token but our own: no person can mend that.
        raise ProviderRefused("GET /app/installations: 401, GitHub does not accept the private key")
    installation = read_object(answer, what="GET /app/installations")
    owner = installation.get("account")
    if not isinstance(owner, dict):
        raise UnusableAnswer("GET /app/installations: no account")
    if str(owner.get("id")) != account.id:
        raise AccountNotPermitted("the installation belongs to another account")
    if installation.get("app_id") != _options(app).app_id:
        raise AccountNotPermitted("the installation belongs to another app")
    if installation.get("suspended_at") is not None:
        raise AccountSuspended("suspended_at is set")


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
    return f"{options.url}/apps/{options.app_slug}/installations/new?{urlencode({'state': state.reveal()})}"


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


def end_token(app: OAuthApp, grant: Grant, call: Call) -> None:
    """End the one token of this grant; the person's other tokens and the installation stay."""
    if grant.access_token is None:
        return
    answer = call(
        "DELETE",
        f"{_options(app).api_url}/applications/{quote(app.client_id, safe='')}/token",
        basic=(app.client_id, app.client_secrets[0]),
        json={"access_token": grant.access_token.reveal()},
        headers=API_VERSION,
    )
    _require_gone(answer, what="DELETE /applications/token")


def _uninstall(app: OAuthApp, account: Account, call: Call, now: datetime) -> None:
    url = f"{_options(app).api_url}/app/installations/{account.facts['installation_id']}"
    answer = call("DELETE", url, bearer=app_jwt(app, now), headers=API_VERSION)
    _require_gone(answer, what="DELETE /app/installations")


def _require_gone(answer: Answer, *, what: str) -> None:
    # 404 and 422: it has ended already, or it expired.
    if answer.status in {204, 404, 422}:
        return
    if answer.status == 401:
        raise ProviderRefused(f"{what}: 401, GitHub does not accept our registration")
    read_json(answer, what=what)
    raise UnusableAnswer(f"{what}: {answer.status}")


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
