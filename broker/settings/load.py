"""Reading all settings at once: every problem is found before anything is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from broker.errors import SettingsError
from broker.settings.apps import AppReader
from broker.settings.model import (
    AppOptions,
    Branding,
    Limits,
    OperatorSignIn,
    PeopleSignIn,
    Retention,
    Settings,
    SignIn,
    Webhooks,
)
from broker.settings.report import Report, Wrong, did_you_mean
from broker.settings.sources import Document, Environment
from broker.settings.table import CONFIG_SETTINGS, SETTINGS, Setting
from broker.settings.values import switched_on

_SignIn = TypeVar("_SignIn", bound=SignIn)

_PREFIX = "BROKER_"
_NAMES = tuple(setting.name for setting in SETTINGS)
_ENVIRONMENT = next(setting for setting in SETTINGS if setting.name == "BROKER_ENV")

# Kubernetes gives these names to every container beside a Service called "broker" or "broker-…"; nobody wrote them.
_SERVICE_LINK = re.compile(r"BROKER_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")


def load_settings(
    environ: Mapping[str, str], options: Mapping[str, type[AppOptions]], *, dotenv: Path | None = None
) -> Settings:
    """Read and check everything.

    Args:
        environ: the environment; its names win over those of the `.env`.
        options: provider name to the class of its options; these are the providers there are.
        dotenv: path of a `.env`, which need not exist.

    Raises:
        SettingsError: with every problem, one sentence each.
    """
    report = Report()
    environment = Environment(environ, dotenv, report)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    mode = _read(_ENVIRONMENT, environment, report, sources)
    report.production = mode != "development"
    for setting in SETTINGS:
        values[setting.name] = _read(setting, environment, report, sources)
    document = Document.read(values["BROKER_CONFIG"], environment, report)
    values |= _config(document, report, sources)
    apps, app_sources = AppReader(environment, document, options, report).read()
    _unknown_names(environment, document, report)
    _debug(environment, report)
    _of_others(environ, environment, report)
    if report.problems:
        raise SettingsError(report.problems)
    return _settings(values, apps, MappingProxyType(sources | app_sources), tuple(report.warnings))


def _read(setting: Setting, environment: Environment, report: Report, sources: dict[str, str]) -> Any:
    """Return the value of an environment setting; None when it is not set, or after reporting a problem."""
    found = environment.get(setting.name)
    sources[setting.name] = found.source if found else "default"
    if found is None and setting.required and setting.name not in environment.broken:
        report.problem(f"{setting.name} is not set: {setting.fix}.")
    text = found.text.strip() if found else setting.default
    return None if text is None else _parsed(setting, text, setting.name, report)


def _parsed(setting: Setting, text: str, where: str, report: Report) -> Any:
    try:
        return setting.parse(text, report)
    except Wrong as wrong:
        report.problem(wrong.sentence(where, setting.advice))
        return None


def _config(document: Document, report: Report, sources: dict[str, str]) -> dict[str, Any]:
    """Return the values of the TOML file, except OAuth apps, by `section.key`."""
    sections: dict[str, list[str]] = {}
    for setting in CONFIG_SETTINGS:
        sections.setdefault(setting.section, []).append(setting.key)
    outer: dict[str, list[str]] = {}
    for section in ("apps", *sections):
        first, _, second = section.partition(".")
        outer.setdefault(first, []).extend([second] if second else [])
    document.unknown("The TOML file", document.content, tuple(outer))
    for first, inner in outer.items():
        if inner:
            document.unknown(f"[{first}]", document.table(first), tuple(inner))
    for section, keys in sections.items():
        document.unknown(f"[{section}]", document.table(*section.split(".")), tuple(keys))
    values = {setting.name: _configured(setting, document, report, sources) for setting in CONFIG_SETTINGS}
    for section in ("sign_in", "operators.sign_in"):
        scopes = values[f"{section}.scopes"]
        if scopes is not None and "openid" not in scopes:
            report.problem(f'[{section}] scopes does not hold openid: write for example scopes = "openid email".')
    return values


def _configured(setting: Setting, document: Document, report: Report, sources: dict[str, str]) -> Any:
    """Return the value of one setting of the TOML file; None when it is not set, or after reporting a problem."""
    table = document.table(*setting.section.split("."))
    where = f"[{setting.section}] {setting.key}"
    present = setting.key in table
    sources[setting.name] = "broker.toml" if present else "default"
    if not present:
        if setting.required and document.has(*setting.section.split(".")):
            report.problem(f"{where} is not set: {setting.fix}.")
        return None if setting.default is None else _parsed(setting, setting.default, where, report)
    given = table[setting.key]
    if not (setting.several and isinstance(given, list)):
        text = document.text(given, where, secret=setting.secret)
        return None if text is None else _parsed(setting, text.strip(), where, report)
    parts = []
    for item in given:
        text = document.text(item, where)
        parts.append(None if text is None else _parsed(setting, text.strip(), where, report))
    return None if None in parts else tuple(value for part in parts for value in part or ())


OF_HOSTS = ("BROKER_API_KEY", "BROKER_URL")
"""What hosts call the broker with, as the documents and examples name it: often set in the very shell that runs us."""


def _unknown_names(environment: Environment, document: Document, report: Report) -> None:
    """Report BROKER_ names that nothing reads: most are misspelt, and would be missed in silence."""
    known = {*_NAMES, *document.references, *OF_HOSTS}
    for name in environment.names():
        if not name.startswith(_PREFIX) or name in known or name.removesuffix("_FILE") in known:
            continue
        if _SERVICE_LINK.fullmatch(name) or (
            name.endswith("_PORT") and _SERVICE_ADDRESS.match(environment.plain(name))
        ):
            continue
        bare = name.removeprefix(_PREFIX)
        listed = "remove it; .env.example lists all settings"
        fix = f"did you mean {bare}?" if bare.removesuffix("_FILE") in _NAMES else did_you_mean(name, _NAMES, listed)
        report.problem(f"{name} is not a setting of the broker: {fix}")


def _debug(environment: Environment, report: Report) -> None:
    for name in ("FLASK_DEBUG", "DEBUG"):
        if report.production and switched_on(environment.plain(name)):
            report.problem(f"{name} is on, which production refuses: remove it, or set BROKER_ENV=development.")


def _of_others(environ: Mapping[str, str], environment: Environment, report: Report) -> None:
    """Warn of what a library reads from the environment by itself and somebody wrote into the `.env`."""
    for name in environment.names():
        if name.startswith("OTEL_") and name not in environ:
            report.warn(f"{name} stands in the .env, where OpenTelemetry does not look: set it in the environment.")


def _settings(
    values: dict[str, Any], apps: Mapping[str, Any], sources: Mapping[str, str], warnings: tuple[str, ...]
) -> Settings:
    production = values["BROKER_ENV"] == "production"

    def section(name: str, *keys: str) -> dict[str, Any]:
        return {key: values[f"{name}.{key}"] for key in keys}

    def sign_in(name: str, kind: type[_SignIn]) -> _SignIn | None:
        given = section(name, *(field.name for field in fields(kind)))
        return kind(**given) if given["issuer"] else None

    return Settings(
        public_url=values["BROKER_PUBLIC_URL"],
        secret_key=values["BROKER_SECRET_KEY"],
        encryption_keys=values["BROKER_ENCRYPTION_KEYS"],
        environment=values["BROKER_ENV"],
        database_url=values["DATABASE_URL"] or f"sqlite:///{values['DATA_DIR'] / 'broker.db'}",
        data_dir=values["DATA_DIR"],
        port=values["PORT"],
        sequin_api_token=values["SEQUIN_API_TOKEN"],
        sequin_api_url=values["SEQUIN_API_URL"],
        apps=MappingProxyType(dict(apps)),
        return_origins=values["BROKER_RETURN_ORIGINS"] or (),
        processes=values["BROKER_PROCESSES"],
        workers=values["BROKER_WORKERS"],
        trusted_proxies=values["BROKER_TRUSTED_PROXIES"],
        keep_grants=values["BROKER_KEEP_GRANTS"],
        metrics_token=values["BROKER_METRICS_TOKEN"],
        log_level=values["BROKER_LOG_LEVEL"],
        log_format=values["BROKER_LOG_FORMAT"] or ("json" if production else "text"),
        limits=Limits(
            **section("limits", "links_per_second", "starts_per_second", "hooks_per_second"),
            enabled=values["BROKER_LIMITS"],
        ),
        branding=Branding(**section("branding", *(field.name for field in fields(Branding)))),
        retention=Retention(**section("retention", "audit_days", "flow_days")),
        webhooks=Webhooks(private_networks=values["webhooks.private_networks"] or ()),
        sign_in=sign_in("sign_in", PeopleSignIn),
        operators_sign_in=sign_in("operators.sign_in", OperatorSignIn),
        flow_minutes=values["limits.flow_minutes"],
        link_minutes=values["limits.link_minutes"],
        sources=sources,
        warnings=warnings,
    )
