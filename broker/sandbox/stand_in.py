"""A stand-in in one file: its data, and the few calls of its API; consent, tokens and revocation are here for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

from flask import Blueprint, jsonify, redirect, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.authorization import Account, AuthorizationServer, Client, Grant, Refused, Rules
from broker.sandbox.faults import add_points
from broker.sandbox.points import point
from broker.sandbox.redirects import is_registered, origin, with_query
from broker.sandbox.refusal import Refusal
from broker.sandbox.secrets import Secrets
from broker.sandbox.sequin.kinds import Kind
from broker.sandbox.world import current_world

NEW_ACCOUNT = "new"
CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}\Z")
View = Callable[..., Response]


def _nothing_more(_grant: Grant) -> Mapping[str, object]:
    return {}


@dataclass(frozen=True)
class StandIn:
    """One service. Its addresses begin with its name: `authorize` lies at `/<name><authorize>`.

    `settings` are the broker's settings that lead here, each with the path below `/<name>` that it gets.
    """

    name: str
    title: str
    # Sequin's slug, under which the sandbox's Sequin knows an OAuth app with the same client id.
    sequin_provider: str
    rules: Rules
    settings: Mapping[str, str]
    authorize: str
    token: str
    revoke: str
    # Members of the token answer besides those of RFC 6749; one that is None is left out.
    more: Callable[[Grant], Mapping[str, object]] = _nothing_more
    # Whether revoking takes our client id and secret, and what it answers where there is nothing to end.
    revoke_needs_client: bool = True
    revoke_unknown: tuple[int, Mapping[str, object]] = (200, {})
    # A credential kind that Sequin does not document, by its name.
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    blueprint: Blueprint = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blueprint", Blueprint(self.name, __name__, url_prefix=f"/{self.name}"))
        add_points(f"{self.name}.{what}" for what in ("authorize", "token", "account", "revoke"))
        own = (
            ("GET", self.authorize, "authorize", self._page),
            ("POST", self.authorize, None, self._decision),
            ("POST", self.token, "token", self._token),
            ("POST", self.revoke, "revoke", self._revoke),
        )
        for method, path, where, view in own:
            self._add(method, path, where, view)

    def api(self, method: str, path: str) -> Callable[[View], View]:
        """Make a function answer one call of the API; its faults are scripted as `<name>.account`."""

        def decorate(view: View) -> View:
            self._add(method, path, "account", view)
            return view

        return decorate

    def _add(self, method: str, path: str, where: str | None, view: View) -> None:
        guarded = point(where and f"{self.name}.{where}")(view)
        self.blueprint.add_url_rule(path, f"{method.lower()}_{view.__name__}", guarded, methods=[method])

    # --- what a stand-in's own calls need ---------------------------------------------------------------

    def server(self) -> AuthorizationServer:
        """Return this service's state."""
        return current_world().servers[self.name]

    def bearer(self) -> Grant | None:
        """Return the grant whose access token a request carries in its header, None for one that does not work."""
        authorization = request.authorization
        return self.server().holder(authorization.token if authorization and authorization.type == "bearer" else None)

    def prove_client(self) -> None:
        """Refuse a request that does not prove who it is, the way this service wants it."""
        authorization = request.authorization
        if self.rules.client_auth == "client_secret_basic":
            basic = authorization if authorization and authorization.type == "basic" else None
            given = (unquote_plus(basic.username or ""), unquote_plus(basic.password or "")) if basic else ("", "")
        else:
            given = (request.form.get("client_id", ""), request.form.get("client_secret", ""))
        client = self.server().client
        if given != (client.id, client.secret) or (authorization and self.rules.client_auth == "client_secret_post"):
            raise oauth_error(401, "invalid_client", "Client authentication failed.")

    def client(self, secrets: Secrets) -> Client:
        """Return the broker's registration here."""
        return Client(secrets.derived(f"{self.name} client id", 32), secrets.derived(f"{self.name} secret", 48))

    def environment(self, secrets: Secrets, base_url: str) -> dict[str, str]:
        """Return the settings that point a broker here."""
        client, prefix = self.client(secrets), self.name.upper()
        own = {f"{prefix}_CLIENT_ID": client.id, f"{prefix}_CLIENT_SECRET": client.secret}
        return own | {name: f"{base_url}/{self.name}{path}" for name, path in self.settings.items()}

    # --- consent ----------------------------------------------------------------------------------------

    def _page(self) -> Response:
        """Ask the person, unless the script answers."""
        consent = current_world().consent
        uri, scopes, problem = self._asked()
        if problem is not None:
            return redirect(problem)
        if consent.auto == "deny":
            return redirect(self._denied(uri))
        if consent.auto == "allow":
            return redirect(self._allowed(uri, scopes, self.server().account(consent.account)))
        page = render_template(
            "sandbox/consent.html",
            title=self.title,
            accounts=list(self.server().accounts.values())[:40],
            scopes=scopes,
            origin=origin(uri),
            new=NEW_ACCOUNT,
        )
        return Response(page, mimetype="text/html")

    def _decision(self) -> Response:
        """Take the person's answer."""
        uri, scopes, problem = self._asked()
        if problem is not None or request.form.get("decision") != "allow":
            return redirect(problem or self._denied(uri), 303)
        chosen = request.form.get("account", NEW_ACCOUNT)
        account = self.server().account(None if chosen == NEW_ACCOUNT else chosen)
        return redirect(self._allowed(uri, scopes, account), 303)

    def _asked(self) -> tuple[str, tuple[str, ...], str | None]:
        """Return redirect address, scopes, and where to send a request that is wrong; None for one that is right."""
        uri = request.args.get("redirect_uri", "")
        if request.args.get("client_id") != self.server().client.id or not is_registered(uri):
            # Never redirected: the address is not to be trusted.
            raise oauth_error(400, "invalid_request", "Unknown client_id, or a redirect_uri that is not registered.")
        current_world().seen.remember(self.server().client.id, uri)
        scopes = tuple(filter(None, request.args.get("scope", "").split(self.rules.scope_separator)))
        challenged = CHALLENGE.match(request.args.get("code_challenge", ""))
        plain = request.args.get("code_challenge_method", "S256") != "S256"
        if request.args.get("response_type") != "code":
            return uri, scopes, self._error(uri, "unsupported_response_type", "The response_type is code.")
        if not scopes or not set(scopes) <= self.rules.scopes:
            return uri, scopes, self._error(uri, "invalid_scope", "No scope, or one that does not exist.")
        if (self.rules.pkce == "required" and not challenged) or plain:
            return uri, scopes, self._error(uri, "invalid_request", "A code_challenge with method S256 is required.")
        return uri, scopes, None

    def _allowed(self, uri: str, scopes: tuple[str, ...], account: Account) -> str:
        code = self.server().authorize(account, uri, scopes, request.args.get("code_challenge"))
        return with_query(uri, code=code, state=request.args.get("state"))

    def _denied(self, uri: str) -> str:
        return self._error(uri, "access_denied", "The user denied the request.")

    def _error(self, uri: str, error: str, description: str) -> str:
        return with_query(uri, error=error, error_description=description, state=request.args.get("state"))

    # --- tokens -----------------------------------------------------------------------------------------

    def _token(self) -> Response:
        """Exchange a code or a refresh token."""
        self.prove_client()
        kind, server, form = request.form.get("grant_type"), self.server(), request.form
        try:
            if kind == "authorization_code":
                uri, verifier = form.get("redirect_uri", ""), form.get("code_verifier")
                grant = server.redeem(form.get("code", ""), uri, verifier)
            elif kind == "refresh_token":
                grant = server.refresh(form.get("refresh_token", ""))
            else:
                raise Refused("unsupported_grant_type", "The grant_type is authorization_code or refresh_token.")
        except Refused as refused:
            raise oauth_error(400, refused.error, refused.description) from None
        answer: dict[str, object] = {
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token,
            "token_type": "Bearer",
            "expires_in": max(1, int(grant.life.total_seconds())),
            "scope": self.rules.scope_separator.join(grant.scopes),
        }
        answer |= self.more(grant)
        return jsonify({name: value for name, value in answer.items() if value is not None})

    def _revoke(self) -> Response:
        """End a token and what hangs on it (RFC 7009)."""
        if self.revoke_needs_client:
            self.prove_client()
        grant = self.server().known(request.form.get("token", ""))
        if grant is None:
            status, body = self.revoke_unknown
            raise Refusal(status, body)
        self.server().end(grant)
        return jsonify({})


def oauth_error(status: int, error: str, description: str) -> Refusal:
    """Return an error as RFC 6749 writes it."""
    return Refusal(status, {"error": error, "error_description": description})
