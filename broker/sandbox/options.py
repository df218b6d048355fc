"""Behaviours that are undecided, or differ between accounts and versions of the real services: switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from broker.sandbox.faults import Unscripted


@dataclass(frozen=True)
class Options:
    """Each is on or off; `POST /control/options` changes some, a reset restores them all."""

    stripe_tokens: bool = True
    """Stripe's token answer carries the three members now marked deprecated, `access_token` among them."""
    github_iss: bool = True
    """Callbacks carry `iss` (RFC 9207)."""
    github_expiring: bool = True
    """The GitHub App's user tokens expire and come with a refresh token."""
    github_silent: bool = True
    """Who has authorized before is sent straight back, unless `prompt=select_account` was asked."""
    github_redirect_on_update: bool = False
    """Saving an existing installation returns to the setup address."""
    sequin_health: bool = True
    """Answers carry `health`."""
    sequin_filters: bool = True
    """List filters work; off, they are ignored, as Sequin's own notice says."""
    sequin_undocumented_kinds: bool = True
    """Kinds that Sequin does not document (`github_oauth2`) are taken, as they may be by the real one."""


def parse_options(current: Options, asked: Mapping[str, object]) -> Options:
    """Return `current` with what was asked for. Raises Unscripted."""
    known = [field.name for field in fields(Options)]
    for name, value in asked.items():
        if name not in known:
            raise Unscripted(f"Unknown option {name!r}; there are {', '.join(known)}.")
        if not isinstance(value, bool):
            raise Unscripted(f"{name!r} must be true or false.")
    changes = {name: bool(value) for name, value in asked.items()}
    return replace(current, **changes)
