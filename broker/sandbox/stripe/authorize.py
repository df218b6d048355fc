"""Stripe's consent page, for Connect and for Stripe Apps."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.points import point
from broker.sandbox.redirects import is_registered, origin, with_query
from broker.sandbox.refusal import Refusal
from broker.sandbox.stripe.platform import APPS, CONNECT, Client
from broker.sandbox.world import World, current_world

blueprint = Blueprint("stripe_authorize", __name__, url_prefix="/stripe")
NEW_ACCOUNT = "new"


@dataclass(frozen=True)
class Ask:
    """An authorize request that has passed every check."""

    client: Client
    scope: str
    redirect_uri: str
    state: str | None


@blueprint.get("/oauth/authorize")
@point("stripe.authorize")
def connect_page() -> Response:
    """Ask the account's owner (Connect)."""
    return _page(_connect_ask(current_world()))


@blueprint.post("/oauth/authorize")
@point()
def connect_decision() -> Response:
    """Take the owner's answer (Connect)."""
    return _decided(_connect_ask(current_world()))


@blueprint.get("/oauth/v2/authorize")
@blueprint.get("/oauth/v2/<channel>/authorize")
@point("stripe.authorize")
def install_page(channel: str = "chnlink_public") -> Response:
    """Ask the account's owner to install (Stripe Apps)."""
    return _page(_apps_ask(current_world(), channel))


@blueprint.post("/oauth/v2/authorize")
@blueprint.post("/oauth/v2/<channel>/authorize")
@point()
def install_decision(channel: str = "chnlink_public") -> Response:
    """Take the owner's answer (Stripe Apps)."""
    return _decided(_apps_ask(current_world(), channel))


def _connect_ask(world: World) -> Ask:
    """Check a Connect request. Whatever is wrong is said on the spot: Stripe redirects a denial and nothing else."""
    client = _client(world, CONNECT)
    kind = request.args.get("response_type")
    if not kind:
        raise _problem("invalid_request", "No response type specified: response_type is required.")
    if kind != "code":
        raise _problem("unsupported_response_type", f"Unsupported response type: {kind}")
    # Without a scope Stripe assumes read_only, and that is closed to new platforms.
    scope = request.args.get("scope", "read_only")
    if scope != "read_write":
        raise _problem("invalid_scope", f"Scope {scope} is not available to this platform. Use read_write.")
    return Ask(client, scope, _redirect_uri(world, client), request.args.get("state"))


def _apps_ask(world: World, channel: str) -> Ask:
    """Check a Stripe Apps request; scopes come from the app's manifest, so none are asked for."""
    client = _client(world, APPS)
    if not channel.startswith("chnlink_"):
        raise _problem("invalid_request", "No such channel link.")
    return Ask(client, "stripe_apps", _redirect_uri(world, client), request.args.get("state"))


def _client(world: World, flavour: str) -> Client:
    client = world.stripe.client(request.args.get("client_id"))
    if client is None or client.flavour != flavour:
        raise _problem("invalid_request", "No application matches the supplied client identifier.")
    return client


def _redirect_uri(world: World, client: Client) -> str:
    uri = request.args.get("redirect_uri") or world.seen.last(client.id) or ""
    if not is_registered(uri):
        raise _problem(
            "invalid_redirect_uri",
            f"Invalid redirect URI '{uri}'. Ensure this uri exactly matches one of the uris in your settings.",
        )
    world.seen.remember(client.id, uri)
    return uri


def _problem(error: str, description: str) -> Refusal:
    # The status is not documented; the body is (providers.md, 6).
    return Refusal(400, {"error": error, "error_description": description, "state": request.args.get("state")})


def _page(ask: Ask) -> Response:
    world = current_world()
    if world.consent.auto == "deny":
        return redirect(_denied(ask))
    if world.consent.auto == "allow":
        return redirect(_allowed(world, ask, world.consent.stripe_account))
    accounts = list(world.stripe.accounts.values())[:40]
    page = render_template(
        "sandbox/stripe.html",
        accounts=accounts,
        connected={account.id for account in accounts if world.stripe.connected(ask.client, account.id)},
        installing=ask.client.flavour == APPS,
        livemode=ask.client.livemode,
        origin=origin(ask.redirect_uri),
        new=NEW_ACCOUNT,
    )
    return Response(page, mimetype="text/html")


def _decided(ask: Ask) -> Response:
    if request.form.get("decision") != "allow":
        return redirect(_denied(ask), 303)
    world, chosen = current_world(), request.form.get("account", NEW_ACCOUNT)
    # Connect cannot attach to what another platform controls: the person is walked into making a second account.
    controlled = (
        ask.client.flavour == CONNECT and chosen in world.stripe.accounts and world.stripe.account(chosen).controlled
    )
    return redirect(_allowed(world, ask, None if chosen == NEW_ACCOUNT or controlled else chosen), 303)


def _allowed(world: World, ask: Ask, account_id: str | None) -> str:
    code = world.stripe.authorize(ask.client, world.stripe.account(account_id), ask.scope)
    scope = ask.scope if ask.client.flavour == CONNECT else None
    return with_query(ask.redirect_uri, scope=scope, code=code.value, state=ask.state)


def _denied(ask: Ask) -> str:
    return with_query(
        ask.redirect_uri,
        error="access_denied",
        error_description="The user denied your request",
        state=ask.state,
    )
