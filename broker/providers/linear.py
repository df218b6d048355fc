"""Linear OAuth applications: a person lets the application into one workspace.

Source: linear.app/developers/oauth-2-0-authentication and /graphql.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, cast

from pydantic import Field

from broker.errors import BrokerError, UnusableAnswer
from broker.http import Answer
from broker.oauth import Grant, OAuthProfile, error_code
from broker.providers import oauth_api
from broker.providers.base import (
    Account,
    AccountGone,
    Call,
    Condition,
    Finding,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    TokenRejected,
    clean,
    read_object,
)
from broker.settings import AppOptions, HttpAddress, OAuthApp

GRAPHQL = "POST /graphql"
WHO = "{ viewer { id name email } organization { id name urlKey } }"


class LinearOptions(AppOptions):
    """Where Linear is, and in whose name the application acts."""

    url: HttpAddress = "https://linear.app"
    api_url: HttpAddress = "https://api.linear.app"
    actor: Literal["user", "app"] = Field(
        default="user", description="In whose name changes are made, `user` or `app`; reading is the same."
    )


def _options(app: OAuthApp) -> LinearOptions:
    assert isinstance(app.options, LinearOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. Scopes are separated by commas; consent is asked for each time, to pick a workspace."""
    options = _options(app)
    return OAuthProfile(
        authorize_url=f"{options.url}/oauth/authorize",
        token_url=f"{options.api_url}/oauth/token",
        token_auth="client_secret_post",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        scopes=app.scopes or PROVIDER.default_scopes,
        scope_separator=",",
        pkce=True,
        authorize_params={"prompt": "consent", "actor": options.actor},
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the workspace that the person let the application into."""
    url = f"{_options(app).api_url}/graphql"
    data = _data(call("POST", url, bearer=oauth_api.held_token(grant), json={"query": WHO}))
    found = data.get("organization")
    if not isinstance(found, dict):
        raise UnusableAnswer(f"{GRAPHQL}: no organization")
    workspace_id = oauth_api.text_of(found, "id", what=GRAPHQL)
    name = clean(found.get("name")) or clean(found.get("urlKey")) or workspace_id
    return (Account(id=workspace_id, name=name, type="workspace", mode="live"),)


def _data(answer: Answer) -> dict[str, Any]:
    """Return the data of a GraphQL answer, which says 400 or even 200 to all kinds of trouble. Raises as `identify`."""
    if answer.status == 400:
        raise _trouble(answer.json())
    content = read_object(answer, what=GRAPHQL)
    if content.get("errors"):
        raise _trouble(content)
    if not isinstance(content.get("data"), dict):
        raise UnusableAnswer(f"{GRAPHQL}: no data")
    return cast(dict[str, Any], content["data"])


def _trouble(content: object) -> BrokerError:
    errors = content.get("errors") if isinstance(content, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    extensions = first.get("extensions")
    code = error_code(extensions.get("code")) if isinstance(extensions, dict) else "unknown"
    if code == "authentication_error":
        return TokenRejected(f"{GRAPHQL}: {code}")
    if code == "ratelimited":
        return ProviderUnavailable(f"{GRAPHQL}: {code}")
    return ProviderRefused(f"{GRAPHQL}: {code}")


def probe(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> Condition:
    """Ask which workspace the token reaches: one call."""
    if grant is None:
        raise TokenRejected("no token is kept")
    (found,) = identify(app, grant, call)
    if found.id != account.id:
        raise AccountGone("the token belongs to another workspace")
    return Condition(account=found)


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return a `linear_oauth2` credential: an access token, imported anew after each refresh here."""
    return {
        "kind": PROVIDER.kind,
        "access_token": oauth_api.access_token(grant).reveal(),
        "scope": " ".join(oauth_api.granted_scopes(profile(app), grant)),
        "linear_org_id": account.id,
        "linear_org_name": account.name,
    }


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"linear_org_id": account.id}


def refreshes(app: OAuthApp) -> bool:
    """Tell that tokens are refreshed here: Sequin’s kind has no place for a refresh token."""
    return True


def end_token(app: OAuthApp, grant: Grant, call: Call) -> None:
    """End the tokens of one grant: the refresh token, and with it what came of it."""
    token = oauth_api.token_to_end(grant)
    if token is None:
        return
    answer = call("POST", f"{_options(app).api_url}/oauth/revoke", form=oauth_api.revocation_form(*token))
    # 400: ended before. 401: no token of theirs, or no longer. There is no client to be wrong about.
    if answer.status not in (400, 401):
        oauth_api.was_ended(answer, what="POST /oauth/revoke")


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """End this connection's tokens; those of others in the same workspace are theirs."""
    if grant is None:
        return False
    end_token(app, grant, call)
    return True


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where people see and remove applications."""
    return f"{_options(app).url}/settings/account/security"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the registration."""
    yield from oauth_api.about_registration(app, profile(app), call)


PROVIDER = Provider(
    name="linear",
    title="Linear",
    sequin_provider="linear",
    kind="linear_oauth2",
    options=LinearOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    default_scopes=("read",),
    reads=("issues, projects and teams of the workspace you pick",),
    never="see your password",
    refreshes=refreshes,
    probe=probe,
    end_token=end_token,
    revoke=revoke,
    manage_url=manage_url,
    diagnose=diagnose,
)
