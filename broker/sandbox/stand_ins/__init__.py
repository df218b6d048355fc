"""The smaller stand-ins: one file each, found by looking, so that there is no list to edit."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from broker.sandbox.stand_in import StandIn


def discover() -> Mapping[str, StandIn]:
    """Return every stand-in by name. A module of this package is one when it defines `STAND_IN`."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = [module.STAND_IN for module in modules if isinstance(getattr(module, "STAND_IN", None), StandIn)]
    return {stand_in.name: stand_in for stand_in in sorted(found, key=lambda one: one.name)}
