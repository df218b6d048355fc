"""The settings that point a broker at a sandbox."""

from __future__ import annotations

from collections.abc import Mapping

from broker.sandbox.secrets import Secrets
from broker.sandbox.stand_ins import discover

PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:/")


def environment(secrets: Secrets, base_url: str) -> dict[str, str]:
    """Return the settings by name; `base_url` is the sandbox's own address without a trailing slash."""
    more = [stand_in.environment(secrets, base_url) for stand_in in discover().values()]
    return {name: value for one in more for name, value in one.items()} | {
        "STRIPE_CLIENT_ID": secrets.stripe_client_id,
        "STRIPE_CLIENT_SECRET": secrets.stripe_secret_key,
        "STRIPE_WEBHOOK_SECRET": secrets.stripe_webhook_secret,
        "STRIPE_APP_CLIENT_ID": secrets.stripe_app_client_id,
        "STRIPE_APP_CLIENT_SECRET": secrets.stripe_app_secret_key,
        "STRIPE_APP_WEBHOOK_SECRET": secrets.stripe_app_webhook_secret,
        "STRIPE_CONNECT_URL": f"{base_url}/stripe",
        "STRIPE_API_URL": f"{base_url}/stripe",
        "STRIPE_MARKETPLACE_URL": f"{base_url}/stripe",
        "GITHUB_CLIENT_ID": secrets.github_client_id,
        "GITHUB_CLIENT_SECRET": secrets.github_client_secret,
        "GITHUB_APP_SLUG": secrets.github_app_slug,
        "GITHUB_APP_ID": str(secrets.github_app_id),
        "GITHUB_PRIVATE_KEY": secrets.github_private_key,
        "GITHUB_WEBHOOK_SECRET": secrets.github_webhook_secret,
        "GITHUB_OAUTH_CLIENT_ID": secrets.github_oauth_client_id,
        "GITHUB_OAUTH_CLIENT_SECRET": secrets.github_oauth_client_secret,
        "GITHUB_URL": f"{base_url}/github",
        "GITHUB_API_URL": f"{base_url}/github/api",
        "SEQUIN_API_URL": f"{base_url}/sequin",
        "SEQUIN_API_TOKEN": secrets.sequin_api_token,
    }


def dotenv(values: Mapping[str, str]) -> str:
    """Write settings as a `.env` file, one line each; quoted where a reader would otherwise stumble."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())


def _quoted(value: str) -> str:
    if value and set(value) <= PLAIN:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
