"""OAuth apps: from `[apps.<key>]` in the TOML file, and from the environment shorthand named after a provider."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from broker.settings.model import AppOptions, OAuthApp, is_address, is_secret
from broker.settings.report import Report, Wrong, did_you_mean
from broker.settings.sources import Document, Environment
from broker.settings.table import APP_FIELDS, AppField, app_settings, option_env, prefixed

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_NEARLY = 0.92


@dataclass
class Draft:
    """An OAuth app as written down: texts, and the name under which each can be corrected."""

    key: str
    provider: str
    source: str
    texts: dict[str, list[str]] = field(default_factory=dict, repr=False)
    names: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    unusable: set[str] = field(default_factory=set)
    """Fields whose problem is already reported."""


class AppReader:
    """Collects the OAuth apps of a deployment, reporting everything that is wrong with them."""

    def __init__(
        self, environment: Environment, document: Document, options: Mapping[str, type[AppOptions]], report: Report
    ) -> None:
        """`options` says which providers there are."""
        self._environment = environment
        self._document = document
        self._options = options
        self._report = report

    def read(self) -> tuple[dict[str, OAuthApp], dict[str, str]]:
        """Return the OAuth apps by key, and where each came from: first the file's, then the shorthand's."""
        tables = self._document.table("apps")
        drafts = [draft for key, table in tables.items() if (draft := self._from_table(key, table))]
        for provider in self._options:
            drafts += self._from_shorthand(provider, tables)
        written = tables or not self._document.readable or not isinstance(self._document.content.get("apps", {}), dict)
        if not written and not self._shorthand_attempted():
            self._report.problem(self._no_app())
        self._lone_options({draft.provider for draft in drafts})
        apps = {draft.key: app for draft in drafts if (app := self._finish(draft))}
        return apps, {f"apps.{draft.key}": draft.source for draft in drafts if draft.key in apps}

    def _no_app(self) -> str:
        first = next(iter(self._options), "stripe")
        names = f"{prefixed(first, 'client_id')} and {prefixed(first, 'client_secret')}"
        table = f"add [apps.{first}] to the TOML file that BROKER_CONFIG names"
        return f"There is no OAuth app: set for example {names}, or {table}."

    # --- the TOML file --------------------------------------------------------------------------------

    def _from_table(self, key: str, table: Any) -> Draft | None:
        where = f"[apps.{key}]"
        if not isinstance(table, dict):
            self._report.problem(f"apps.{key} in the TOML file is not a table: begin it with the line {where}.")
            return None
        if not _KEY.fullmatch(key):
            rule = (
                "use up to 40 small letters, digits, - and _, beginning with a letter, for example [apps.stripe-test]"
            )
            self._report.problem(f"{where} is not a usable key: {rule}.")
        provider = table.get("provider")
        named = provider if isinstance(provider, str) else ""
        draft = Draft(key, named, "broker.toml")
        for one in APP_FIELDS:
            self._common_from_table(draft, one, table, where)
        if named not in self._options:
            self._report.problem(self._unknown_provider(where, named))
            for one in APP_FIELDS:
                self._parsed(draft, one)
            return None
        known = self._options[named].model_fields
        plurals = tuple(one.plural for one in APP_FIELDS if one.plural)
        self._document.unknown(where, table, ("provider", *(one.name for one in APP_FIELDS), *plurals, *known))
        for name, option in known.items():
            draft.names[name] = f"{where} {name}" if name in table else option_env(named, name, option)
            if name in table:
                self._option_from_table(draft, name, table[name], secret=is_secret(option))
            else:
                self._option_from_environment(draft, name)
        return draft

    def _unknown_provider(self, where: str, provider: str) -> str:
        if not provider:
            first = next(iter(self._options), "stripe")
            return f'{where} does not name its provider: add for example provider = "{first}".'
        fix = did_you_mean(provider, self._options, f"known are {', '.join(self._options)}")
        return f"{where} names an unknown provider: {fix}"

    def _common_from_table(self, draft: Draft, one: AppField, table: dict[str, Any], where: str) -> None:
        given = [name for name in (one.name, one.plural) if name is not None and name in table]
        name = given[0] if given else one.name
        draft.names[one.name] = f"{where} {name}"
        if len(given) > 1:
            self._report.problem(f"{where} has both {given[0]} and {given[1]}: keep one of them.")
            draft.unusable.add(one.name)
        elif given:
            many = name == one.plural or one.separator is not None
            items = table[name] if many and isinstance(table[name], list) else [table[name]]
            texts = [self._document.text(item, f"{where} {name}", secret=one.secret) for item in items]
            draft.texts[one.name] = [part for text in texts if text is not None for part in _items(one, text)]
            if None in texts:
                draft.unusable.add(one.name)

    def _option_from_table(self, draft: Draft, name: str, value: Any, *, secret: bool) -> None:
        if isinstance(value, str | dict) or secret:
            text = self._document.text(value, draft.names[name], secret=secret)
            if text is None:
                draft.unusable.add(name)
            value = text
        draft.options[name] = value

    # --- the environment shorthand --------------------------------------------------------------------

    def _used(self, provider: str) -> list[str]:
        """Return the provider's common names that are set for the shorthand, not for a reference in the file."""
        names = [prefixed(provider, one.name) for one in APP_FIELDS]
        return [name for name in names if name not in self._document.references and self._environment.is_set(name)]

    def _shorthand_attempted(self) -> bool:
        return any(self._used(provider) or self._set_options(provider) for provider in self._options)

    def _from_shorthand(self, provider: str, tables: Mapping[str, Any]) -> Iterator[Draft]:
        used = self._used(provider)
        if not used:
            return
        self._nearly(provider)
        if provider in tables:
            fix = f"remove {' and '.join(used)}, or that table"
            self._report.problem(
                f"The OAuth app {provider} is set up both by [apps.{provider}] and by {used[0]}: {fix}."
            )
            return
        source = self._environment.get(prefixed(provider, "client_id"))
        draft = Draft(provider, provider, source.source if source else "environment")
        for one in APP_FIELDS:
            name = draft.names[one.name] = prefixed(provider, one.name)
            if found := self._environment.get(name):
                draft.texts[one.name] = _items(one, found.text)
            if name in self._environment.broken:
                draft.unusable.add(one.name)
        for name, option in self._options[provider].model_fields.items():
            draft.names[name] = option_env(provider, name, option)
            self._option_from_environment(draft, name)
        yield draft

    def _option_from_environment(self, draft: Draft, name: str) -> None:
        env = draft.names[name]
        if found := self._environment.get(env):
            draft.options[name] = found.text if is_secret(self._fields(draft)[name]) else found.text.strip()
        if env in self._environment.broken:
            draft.unusable.add(name)

    def _fields(self, draft: Draft) -> Mapping[str, Any]:
        return self._options[draft.provider].model_fields

    def _set_options(self, provider: str) -> list[str]:
        """Return the provider's own option names that are set; base addresses alone ask for no app."""
        names = [
            option_env(provider, name, option)
            for name, option in self._options[provider].model_fields.items()
            if not is_address(option)
        ]
        own = [name for name in names if name.startswith(prefixed(provider, ""))]
        return [name for name in own if name not in self._document.references and self._environment.is_set(name)]

    def _lone_options(self, providers: set[str]) -> None:
        """Report options that no OAuth app reads: an app was meant, and its client id is missing."""
        read = {
            option_env(provider, name, option)
            for provider in providers
            for name, option in self._options[provider].model_fields.items()
        }
        for provider in self._options:
            for name in self._set_options(provider):
                if name not in read:
                    missing = f"{prefixed(provider, 'client_id')} and {prefixed(provider, 'client_secret')}"
                    self._report.problem(
                        f"{name} is set, but there is no OAuth app that reads it: set {missing} too, or remove it."
                    )

    def _nearly(self, provider: str) -> None:
        """Warn about names that look like misspelt shorthand; others may own them, so they stop nothing."""
        known = {setting.name for name, cls in self._options.items() for setting in app_settings(name, cls)}
        for name in self._environment.names():
            plain = name.removesuffix("_FILE")
            if plain in known | self._document.references or not name.startswith(prefixed(provider, "")):
                continue
            if close := difflib.get_close_matches(plain, known, n=1, cutoff=_NEARLY):
                self._report.warn(f"{name} is not read by the broker: did you mean {close[0]}?")

    # --- both -----------------------------------------------------------------------------------------

    def _finish(self, draft: Draft) -> OAuthApp | None:
        """Check a draft; None after reporting what is wrong with it."""
        parsed = {one.name: self._parsed(draft, one) for one in APP_FIELDS}
        options = self._checked_options(draft)
        complete = all(parsed[one.name] for one in APP_FIELDS if one.fix) and _KEY.fullmatch(draft.key)
        if options is None or draft.unusable or not complete:
            return None
        return OAuthApp(
            key=draft.key,
            provider=draft.provider,
            client_id=parsed["client_id"][0],
            client_secrets=parsed["client_secret"],
            scopes=parsed["scopes"],
            sequin_oauth_app_id=next(iter(parsed["sequin_oauth_app_id"]), None),
            webhook_secrets=parsed["webhook_secret"],
            why=next(iter(parsed["why"]), ""),
            options=options,
        )

    def _parsed(self, draft: Draft, one: AppField) -> tuple[Any, ...]:
        """Return the items of a common field."""
        where = draft.names[one.name]
        items = []
        for text in draft.texts.get(one.name, []):
            try:
                items.append(one.parse(text, self._report))
            except Wrong as wrong:
                self._report.problem(wrong.sentence(where, "correct it"))
                draft.unusable.add(one.name)
        if one.fix and not items and one.name not in draft.unusable:
            self._report.problem(f"{where} is not set: {one.fix}.")
        return tuple(dict.fromkeys(items))

    def _checked_options(self, draft: Draft) -> AppOptions | None:
        given = {name: value for name, value in draft.options.items() if name not in draft.unusable}
        try:
            return self._options[draft.provider].model_validate(given, context=self._report)
        except ValidationError as error:
            # Without input: it may be a secret, and it would travel with the exception.
            details = error.errors(include_url=False, include_input=False)
        for detail in details:
            self._option_problem(draft, detail)
        return None

    def _option_problem(self, draft: Draft, detail: ErrorDetails) -> None:
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if name in draft.unusable:
            return
        where = draft.names.get(name, f"The OAuth app {draft.key}")
        if detail["type"] == "missing":
            self._report.problem(
                f"{where} is not set: the provider {draft.provider} needs it, copy it from its console."
            )
            return
        cause = detail.get("ctx", {}).get("error")
        option = self._fields(draft).get(name)
        if isinstance(cause, Wrong):
            wrong = cause
        elif isinstance(cause, ValueError):
            wrong = Wrong(f"cannot be used: {cause}")
        elif option is not None and is_secret(option):
            wrong = Wrong("cannot be used", "write it as text")
        else:
            wrong = Wrong("cannot be used", detail["msg"].replace("Input should be", "it should be"))
        fallback = "write for example https://api.example.com" if option is not None and is_address(option) else ""
        self._report.problem(wrong.sentence(where, fallback))


def _items(one: AppField, text: str) -> list[str]:
    """Split a text where several are allowed; a secret keeps its spaces, so that they can be reported."""
    if one.separator is not None:
        return [part for part in one.separator.split(text) if part]
    return [text if one.secret else text.strip()]
