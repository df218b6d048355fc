"""The whole state as JSON, for `GET /control/state`."""

from __future__ import annotations

from datetime import datetime

from broker.sandbox.authorization import Account as OtherAccount
from broker.sandbox.authorization import AuthorizationServer
from broker.sandbox.authorization import Grant as OtherGrant
from broker.sandbox.github.hub import Token
from broker.sandbox.github.people import User
from broker.sandbox.rotation import Family, Reuse
from broker.sandbox.sequin.store import Credential
from broker.sandbox.stripe.accounts import Account
from broker.sandbox.stripe.platform import Grant
from broker.sandbox.world import World


def snapshot(world: World) -> dict[str, list[dict[str, object]]]:
    """Return accounts, grants, refreshed families, reused tokens and credentials. The caller holds the lock."""
    return {
        "accounts": [
            *(_stripe_account(world, account) for account in world.stripe.accounts.values()),
            *(_github_account(world, user) for user in world.github.users.values()),
            *(_account(server, account) for server in world.servers.values() for account in server.accounts.values()),
        ],
        "grants": [
            *(_stripe_grant(world, grant) for grant in world.stripe.grants()),
            *(_github_grant(world, token) for token in world.github.tokens()),
            *(_grant(server, grant) for server in world.servers.values() for grant in server.grants()),
        ],
        "families": [_family(family) for family in world.rotations.families()],
        "reuses": [_reuse(reuse) for reuse in world.rotations.reuses],
        "credentials": [_credential(credential) for credential in world.sequin.credentials.values()],
    }


def _stripe_account(world: World, account: Account) -> dict[str, object]:
    clients = (world.stripe.platform, world.stripe.app)
    connected = any(world.stripe.connected(client, account.id) for client in clients)
    return {"provider": "stripe", "id": account.id, "name": account.name, "connected": connected}


def _github_account(world: World, user: User) -> dict[str, object]:
    return {
        "provider": "github",
        "id": user.id,
        "login": user.login,
        "name": user.name,
        "organizations": dict(user.orgs),
        "installations": [
            {
                "id": one.id,
                "account_login": one.account_login,
                "account_type": one.account_type,
                "suspended": one.suspended_at is not None,
            }
            for one in world.github.visible_to(user)
        ],
    }


def _stripe_grant(world: World, grant: Grant) -> dict[str, object]:
    works = grant.active and not grant.expired(world.clock.now())
    return {
        "provider": "stripe",
        "client_id": grant.client.id,
        "account": grant.account_id,
        "flavour": grant.flavour,
        "livemode": grant.client.livemode,
        "scope": grant.scope,
        "status": "active" if works else "expired" if grant.active else "revoked",
        "access_token": grant.access_token,
        "refresh_token": grant.refresh_token,
        "created_at": _precise(grant.created_at),
    }


def _github_grant(world: World, token: Token) -> dict[str, object]:
    ends = token.expires_at()
    return {
        "provider": "github",
        "client_id": token.client.id,
        "account": token.login,
        "scope": ",".join(token.scopes),
        "status": "active" if world.github.holder(token.value) else "expired",
        "access_token": token.value,
        "refresh_token": token.refresh,
        "created_at": _precise(token.created_at),
        "expires_at": _precise(ends) if ends else None,
    }


def _account(server: AuthorizationServer, account: OtherAccount) -> dict[str, object]:
    return {"provider": server.name, "id": account.id, "name": account.name}


def _grant(server: AuthorizationServer, grant: OtherGrant) -> dict[str, object]:
    works = server.holder(grant.access_token) is not None
    return {
        "provider": server.name,
        "client_id": server.client.id,
        "account": grant.account.id,
        "scope": " ".join(grant.scopes),
        "status": "active" if works else "expired" if grant.active else "revoked",
        "access_token": grant.access_token,
        "refresh_token": grant.refresh_token,
        "created_at": _precise(grant.created_at),
    }


def _family(family: Family) -> dict[str, object]:
    return {
        "provider": family.provider,
        "account": family.account,
        "refreshes": family.refreshes,
        "reuses": family.reuses,
        "burned": family.burned,
        "refresh_token": family.current,
    }


def _reuse(reuse: Reuse) -> dict[str, object]:
    return {
        "provider": reuse.family.provider,
        "account": reuse.family.account,
        "refresh_token": reuse.token,
        "burned": reuse.burned,
        "at": _precise(reuse.at),
    }


def _credential(credential: Credential) -> dict[str, object]:
    return {
        "id": credential.id,
        "provider": credential.rules.provider,
        "kind": credential.kind,
        "oauth_app_id": credential.oauth_app_id,
        "name": credential.name,
        "properties": dict(credential.properties),
        "metadata": dict(credential.metadata),
        "health": credential.health.status,
        "created_at": _precise(credential.created_at),
        "updated_at": _precise(credential.updated_at),
        "import_count": credential.import_count,
    }


def _precise(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
