"""What happened at the provider: makes it so, and returns the webhook that tells the broker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.sandbox.faults import Unscripted
from broker.sandbox.github.answers import installation_resource
from broker.sandbox.github.people import Installation, User, account
from broker.sandbox.redirects import is_loopback, origin
from broker.sandbox.secrets import alphanumeric
from broker.sandbox.webhooks import Delivery, github_delivery, stripe_delivery
from broker.sandbox.world import World

MEMBERS = (
    "provider",
    "type",
    "event",
    "action",
    "url",
    "app",
    "account",
    "livemode",
    "payload",
    "effect",
    "id",
    "secret",
    "timestamp",
    "created",
    "unsigned",
    "times",
)
PROVIDERS = ("stripe", "stripe_app", "github")
MOST_TIMES = 100


@dataclass(frozen=True)
class Order:
    """A control request for a webhook, read and checked."""

    provider: str
    name: str
    url: str | None = None
    app: str | None = None
    account: str | None = None
    livemode: bool = False
    payload: Mapping[str, object] | None = None
    # Off, only the webhook is sent and nothing changes here: a late, repeated or forged one.
    effect: bool = True
    id: str | None = None
    secret: str | None = None
    # When it was signed and, for Stripe, when it happened; both are now unless told otherwise.
    timestamp: int | None = None
    created: int | None = None
    # Sent without the header that carries the signature.
    unsigned: bool = False
    # How often the very same delivery is sent.
    times: int = 1


def parse_order(asked: Mapping[str, object]) -> Order:
    """Read a control request. Raises Unscripted."""
    unknown = sorted(set(asked) - set(MEMBERS))
    if unknown:
        raise Unscripted(f"Unknown member {unknown[0]!r}; a webhook has {', '.join(MEMBERS)}.")
    provider = asked.get("provider")
    if provider not in PROVIDERS:
        raise Unscripted(f"'provider' is {provider!r} but must be one of {', '.join(PROVIDERS)}.")
    payload, times = asked.get("payload"), _whole(asked, "times")
    if not isinstance(payload, dict | None):
        raise Unscripted("'payload' must be an object.")
    if times is not None and not 1 <= times <= MOST_TIMES:
        raise Unscripted(f"'times' must be a whole number from 1 to {MOST_TIMES}.")
    return Order(
        provider=str(provider),
        name=_name(str(provider), asked),
        url=_text(asked, "url"),
        app=_text(asked, "app"),
        account=_text(asked, "account"),
        livemode=asked.get("livemode") is True,
        payload=payload,
        effect=asked.get("effect") is not False,
        id=_text(asked, "id"),
        secret=_text(asked, "secret"),
        timestamp=_whole(asked, "timestamp"),
        created=_whole(asked, "created"),
        unsigned=asked.get("unsigned") is True,
        times=times or 1,
    )


def prepare(world: World, order: Order) -> Delivery:
    """Make it happen here and return the webhook. Raises Unscripted. The caller holds the lock."""
    return _github(world, order) if order.provider == "github" else _stripe(world, order)


def _name(provider: str, asked: Mapping[str, object]) -> str:
    """Return the event's name; GitHub's with its action, as `installation.deleted`."""
    name = _text(asked, "type") or _text(asked, "event")
    if provider != "github":
        return name or "account.application.deauthorized"
    name, action = name or "installation", _text(asked, "action")
    default = "revoked" if name == "github_app_authorization" else "deleted"
    return name if "." in name else f"{name}.{action or default}"


def _whole(asked: Mapping[str, object], name: str) -> int | None:
    value = asked.get(name)
    if isinstance(value, int | None) and not isinstance(value, bool):
        return value
    raise Unscripted(f"{name!r} must be a whole number.")


def _text(asked: Mapping[str, object], name: str) -> str | None:
    value = asked.get(name)
    if isinstance(value, str | None):
        return value
    raise Unscripted(f"{name!r} must be a string.")


def _address(world: World, order: Order, client_id: str) -> str:
    seen = world.seen.last(client_id)
    base = order.url or (origin(seen) if seen else None)
    if base is None:
        raise Unscripted("No broker has been seen yet: give its address as 'url'.")
    host = base.partition("://")[2].partition("/")[0]
    if not base.startswith(("http://", "https://")) or not is_loopback(host):
        raise Unscripted("'url' must be an http or https address on this machine.")
    app = order.app or world.seen.app_key(client_id) or order.provider
    return f"{base.rstrip('/')}/hooks/{app}"


def _stripe(world: World, order: Order) -> Delivery:
    is_app = order.provider == "stripe_app"
    client = world.stripe.app if is_app else world.stripe.platform
    account_id = order.account or world.stripe.newest_account(client)
    if account_id is None and order.payload is None:
        raise Unscripted("No account has been connected yet: give one as 'account'.")
    url = _address(world, order, client.id)
    if order.effect and account_id and order.name == "account.application.deauthorized":
        world.stripe.disconnect(client, account_id)
    now = int(world.clock.now().timestamp())
    event = {
        "id": order.id or f"evt_1{alphanumeric(23)}",
        "object": "event",
        "api_version": "2026-10-29",
        "created": now if order.created is None else order.created,
        "livemode": order.livemode,
        "pending_webhooks": 1,
        "request": None,
        "account": account_id,
        "type": order.name,
        # The application, not the account: that one is above.
        "data": {"object": {"id": client.id, "object": "application", "name": "Sandbox broker"}},
    }
    own = world.secrets.stripe_app_webhook_secret if is_app else world.secrets.stripe_webhook_secret
    return stripe_delivery(url, order.payload or event, order.secret or own, order.timestamp or now)


def _github(world: World, order: Order) -> Delivery:
    event, _, action = order.name.partition(".")
    url = _address(world, order, world.github.app.id)
    payload = order.payload
    if payload is None:
        payload = _github_payload(world, order, event, action)
    secret = order.secret or world.secrets.github_webhook_secret
    delivery_id = order.id or str(uuid.uuid4())
    return github_delivery(url, event, payload, secret, delivery_id, world.github.app_id)


def _github_payload(world: World, order: Order, event: str, action: str) -> dict[str, object]:
    login = order.account or world.github.newest_login()
    if login is None:
        raise Unscripted("Nobody has connected yet: give a login as 'account'.")
    sender = world.github.owner_of(login) or world.github.user(login)
    if event == "github_app_authorization":
        if order.effect and action == "revoked":
            world.github.revoke_grant(world.github.app, sender.login)
        # Nothing more is in it: connections are found by the sender's id.
        return {"action": action, "sender": account(sender.id, sender.login, "User")}
    return _installation_payload(world, order, action, login, sender)


def _installation_payload(world: World, order: Order, action: str, login: str, sender: User) -> dict[str, object]:
    requester = world.github.users.get(world.github.requests.get(login, ""))
    if order.effect and action == "created":
        world.github.install(login)
    installation = world.github.installation_on(login)
    if installation is None:
        raise Unscripted(f"The App is not installed on {login}.")
    if order.effect and action in EFFECTS:
        EFFECTS[action](world, installation)
    asker = account(requester.id, requester.login, "User") if requester else None
    return {
        "action": action,
        "installation": installation_resource(world, installation),
        "repositories": [],
        "requester": asker,
        "sender": account(sender.id, sender.login, "User"),
    }


def _suspend(world: World, installation: Installation) -> None:
    installation.suspended_at = world.clock.now()


def _unsuspend(_: World, installation: Installation) -> None:
    installation.suspended_at = None


def _uninstall(world: World, installation: Installation) -> None:
    world.github.uninstall(installation)


EFFECTS: Mapping[str, Callable[[World, Installation], None]] = {
    "suspend": _suspend,
    "unsuspend": _unsuspend,
    "deleted": _uninstall,
}
