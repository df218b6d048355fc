"""The providers: one file each, found by looking, so that there is no list to edit."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from broker.providers.base import Provider


def discover() -> Mapping[str, Provider]:
    """Return every provider by name. A module of this package is one when it defines `PROVIDER`."""
    found: dict[str, Provider] = {}
    for module in pkgutil.iter_modules(__path__):
        provider = getattr(import_module(f"{__name__}.{module.name}"), "PROVIDER", None)
        if isinstance(provider, Provider):
            found[provider.name] = provider
    return dict(sorted(found.items()))
