"""What GitHub Apps and OAuth Apps have in common: addresses, the token endpoint, who the person is, ending a token.

Source: docs.github.com, "Authorizing OAuth apps", "Generating a user access token for a GitHub App", and the REST
reference for OAuth applications.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import Field

from broker.errors import UnusableAnswer
from broker.http import Answer
from broker.oauth import Grant, OAuthProfile
from broker.providers.base import Call, ProviderRefused, clean, read_json, read_object
from broker.secret import Secret
from broker.settings import AppOptions, HttpAddress, OAuthApp

API_VERSION = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


def _shared(name: str, description: str = "Base address.") -> Any:
    # Both kinds of app live on the same host, so that one setting says where it is.
    return Field(description=description, json_schema_extra={"env": name})


_ISSUER = _shared("GITHUB_ISSUER", "What `iss` in callbacks says, where it is not GITHUB_URL/login/oauth.")


class GitHubAddresses(AppOptions):
    """Where GitHub is: github.com, or an enterprise host."""

    url: Annotated[HttpAddress, _shared("GITHUB_URL")] = "https://github.com"
    api_url: Annotated[HttpAddress, _shared("GITHUB_API_URL")] = "https://api.github.com"
    # Enterprise hosts are not known to send `iss`; should one send another than this assumes, it is set here.
    issuer: Annotated[HttpAddress, _ISSUER] = ""


def addresses(app: OAuthApp) -> GitHubAddresses:
    """Return where this app's GitHub is."""
    assert isinstance(app.options, GitHubAddresses)
    return app.options


def is_enterprise_server(app: OAuthApp) -> bool:
    """Tell whether the host is an installation of somebody's own; `*.ghe.com` works like github.com."""
    host = urlsplit(addresses(app).url).hostname or ""
    return host != "github.com" and not host.endswith(".ghe.com")


def github_profile(app: OAuthApp, scopes: tuple[str, ...]) -> OAuthProfile:
    """Return the endpoints. GitHub documents the secret in the body and needs it with PKCE too."""
    where = addresses(app)
    return OAuthProfile(
        authorize_url=f"{where.url}/login/oauth/authorize",
        token_url=f"{where.url}/login/oauth/access_token",
        token_auth="client_secret_post",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        scopes=scopes,
        pkce=True,
        issuer=where.issuer or f"{where.url}/login/oauth",
        # Without it GitHub bounces an already authorised person straight back with whichever account is signed in.
        authorize_params={"prompt": "select_account"},
    )


def get(app: OAuthApp, token: Secret | None, call: Call, path: str) -> dict[str, Any]:
    """Ask the API with a person's token. Raises as `read_object`."""
    url = f"{addresses(app).api_url}{path}"
    return read_object(call("GET", url, bearer=token, headers=API_VERSION), what=f"GET {path.partition('?')[0]}")


def person(app: OAuthApp, token: Secret | None, call: Call) -> dict[str, Any]:
    """Return the person behind a token, whose numeric `id` is sure to be one. Raises UnusableAnswer and others."""
    user = get(app, token, call, "/user")
    if not is_id(user.get("id")):
        raise UnusableAnswer("GET /user: no id")
    return user


def is_id(value: object) -> bool:
    """Tell whether a value is one of GitHub's numeric ids, the only ones that are never given to somebody else."""
    return isinstance(value, int) and not isinstance(value, bool)


def login_of(owner: Mapping[str, Any]) -> str:
    """Return the name of a person or organisation, which can change."""
    return clean(owner.get("login"))


def about_token(app: OAuthApp, method: str, token: Secret, call: Call) -> Answer:
    """Ask about a token, or end it, as the client it was issued to.

    Each client secret is tried, since only one may work while they are being replaced. Raises ProviderRefused.
    """
    url = f"{addresses(app).api_url}/applications/{quote(app.client_id, safe='')}/token"
    for secret in app.client_secrets:
        answer = call(
            method,
            url,
            basic=(app.client_id, secret),
            json={"access_token": token.reveal()},
            headers=API_VERSION,
        )
        if answer.status != 401:
            return answer
    raise ProviderRefused(f"{method} /applications/token: 401, GitHub does not accept the client secret")


def end_token(app: OAuthApp, grant: Grant, call: Call) -> None:
    """End the one token of this grant; the person's other tokens and any installation stay. Repeating is harmless."""
    if grant.access_token is not None:
        require_gone(about_token(app, "DELETE", grant.access_token, call), what="DELETE /applications/token")


def require_gone(answer: Answer, *, what: str) -> None:
    """Accept an answer that says that something has ended. Raises the errors of `base`."""
    # 404 and 422: it has ended already, or it expired.
    if answer.status in {204, 404, 422}:
        return
    if answer.status == 401:
        raise ProviderRefused(f"{what}: 401, GitHub does not accept our registration")
    read_json(answer, what=what)
    raise UnusableAnswer(f"{what}: {answer.status}")
