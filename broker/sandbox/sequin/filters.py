"""The query parameters of the two lists."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flask import request

from broker.sandbox.sequin.answers import refusal
from broker.sandbox.world import World

Shown = Mapping[str, object]


def filtered(world: World, items: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the items that fit every filter given. Raises a 400 Refusal."""
    if not world.options.sequin_filters:
        return items
    wanted = {name: request.args[name] for name in ("provider", "kind") if name in request.args}
    health = request.args.get("health.status")
    metadata = _metadata()
    return [
        item
        for item in items
        if all(item.get(name) == value for name, value in wanted.items())
        and (health is None or _status(item) == health)
        and _contains(item["metadata"], metadata)
    ]


def _metadata() -> Mapping[str, object]:
    try:
        value = json.loads(request.args.get("metadata", "{}"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise refusal(400, "The metadata filter must be a JSON object")
    return value


def _status(item: Shown) -> object:
    health = item.get("health")
    return health.get("status") if isinstance(health, dict) else None


def _contains(stored: object, wanted: object) -> bool:
    """Tell whether everything wanted is in what is stored, at any depth."""
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and all(
            name in stored and _contains(stored[name], value) for name, value in wanted.items()
        )
    return stored == wanted
