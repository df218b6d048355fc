"""The OAuth apps this deployment offers, each with its provider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from broker.errors import AppUnknown
from broker.providers.base import Provider
from broker.settings import OAuthApp


@dataclass(frozen=True)
class OfferedApp:
    """One configured OAuth app and what its provider's file says of it."""

    config: OAuthApp
    provider: Provider

    @property
    def key(self) -> str:
        """The app's key, such as `stripe` or `stripe-test`."""
        return self.config.key

    @property
    def title(self) -> str:
        """The provider's name for people."""
        return self.provider.title

    @property
    def keeps_grant(self) -> bool:
        """Whether its grants are still needed after a verified import."""
        return self.provider.keeps_grant(self.config) or self.refreshes

    @property
    def refreshes(self) -> bool:
        """Whether its grants are refreshed here."""
        return self.provider.refreshes(self.config)

    @property
    def kind(self) -> str:
        """Sequin's kind of the credentials imported."""
        return self.provider.kind_of(self.config) if self.provider.kind_of else self.provider.kind

    def missing(self, granted: Iterable[str]) -> tuple[str, ...]:
        """Return the scopes asked for that were not granted."""
        held = tuple(granted)
        if self.provider.missing is not None:
            return self.provider.missing(self.config, held)
        # What is really sent: some providers ignore scopes, and their files leave them out.
        return tuple(scope for scope in self.provider.profile(self.config).scopes if scope not in held)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes asked for."""
        return self.config.scopes or self.provider.default_scopes


class AppCatalogue:
    """The configured OAuth apps, in the order they were configured."""

    def __init__(self, configured: Mapping[str, OAuthApp], providers: Mapping[str, Provider]) -> None:
        self._apps = {key: OfferedApp(app, providers[app.provider]) for key, app in configured.items()}

    def __iter__(self) -> Iterator[OfferedApp]:
        return iter(self._apps.values())

    def __contains__(self, key: object) -> bool:
        return key in self._apps

    def get(self, key: str) -> OfferedApp:
        """Return the app called `key`. Raises AppUnknown."""
        try:
            return self._apps[key]
        except KeyError:
            raise AppUnknown(f"no OAuth app is configured under {key!r}") from None

    def offered(self, keys: Iterable[str] | None) -> list[OfferedApp]:
        """Return the apps named by `keys`, or every app for None; apps no longer configured are left out."""
        return list(self._apps.values()) if keys is None else [self._apps[key] for key in keys if key in self._apps]

    def require(self, key: str, offered: Iterable[str] | None) -> None:
        """Raise AppUnknown unless a link that offers `offered` (None for every app) offers the app `key`."""
        if all(app.key != key for app in self.offered(offered)):
            raise AppUnknown(f"the link does not offer {key!r}")
