"""The composition root: the one place that reads settings, builds collaborators and registers blueprints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TextIO

import structlog
from flask import Flask, redirect, url_for
from flask_migrate import Migrate
from flask_migrate.cli import db as migrations

from broker import __version__, logs
from broker.apikeys import ApiKeys
from broker.approvals import Approvals, approved
from broker.apps import AppCatalogue
from broker.audit_chain import AuditChain
from broker.audit_trail import AuditTrail
from broker.bulk import BulkRuns
from broker.circuits import SEQUIN, Circuits, app_circuit
from broker.cli import BrokerCommands
from broker.clock import Clock, SystemClock
from broker.confirmation import Confirmations
from broker.connections import Connections
from broker.db import Database, db, engine_options, keep_private, migrations_path, prepare
from broker.delivery import Deliveries
from broker.discards import Discards
from broker.disconnection import Disconnections
from broker.doctor import Doctor
from broker.erasure import Erasures
from broker.events import Events
from broker.figures import Figures
from broker.flow_page import FlowPages
from broker.flows import Flows
from broker.history import History
from broker.http import Http
from broker.idempotency import IdempotentCalls
from broker.jobs import Jobs
from broker.journal import FlowJournal
from broker.keyring import KeyRing
from broker.links import Links
from broker.matching import OAuthAppMatch, OAuthApps
from broker.moving import Moving
from broker.notifications import Notifications, may_be_told
from broker.oauth import OAuth
from broker.openid import OpenIdProvider
from broker.operators import Operators
from broker.overview import Overviews
from broker.probes import Probes
from broker.provider_events import ProviderEvents
from broker.providers import discover
from broker.providers.base import Provider
from broker.purge import Purge
from broker.reconciliation import Reconciliation
from broker.reconnects import Reconnects
from broker.refresh import Refreshes
from broker.resealing import Resealing
from broker.secret import digest
from broker.self_service import SelfService
from broker.sequin import Sequin
from broker.services import Services
from broker.sessions import Sessions
from broker.settings import Settings, SignIn, load_settings
from broker.sign_ins import Admit, Door, People, SignIns, Staff
from broker.timeline import Timeline
from broker.trials import Trials
from broker.vault import Vault
from broker.verification import Verifications
from broker.web import embedded, init_web, limits
from broker.web.api import blueprint as api
from broker.web.connect import blueprint as connect
from broker.web.connections import blueprint as connections
from broker.web.console import blueprint as console
from broker.web.docs import blueprint as docs
from broker.web.hooks import blueprint as hooks
from broker.web.metrics import blueprint as metrics
from broker.web.ops import blueprint as ops
from broker.web.sign_in import blueprint as sign_in
from broker.webhook_endpoints import WebhookEndpoints
from broker.workload import Workload

log = structlog.get_logger(__name__)


def read_settings(env_file: Path | None = None) -> Settings:
    """Read the settings from the environment and a `.env`. Raises SettingsError with every problem at once."""
    options = {name: provider.options for name, provider in discover().items()}
    return load_settings(os.environ, options, dotenv=env_file or Path(".env"))


def create_app(settings: Settings | None = None, *, clock: Clock | None = None, log_to: TextIO | None = None) -> Flask:
    """Build the application; its events go to `log_to`, standard output by default. Raises SettingsError."""
    settings = settings or read_settings()
    clock = clock or SystemClock()
    logs.configure(settings.log_level, settings.log_format, log_to)
    for sentence in settings.warnings:
        log.warning("settings.warning", advice=sentence)
    app = Flask("broker", template_folder=str(templates_path()), static_folder="web/static")
    services = build_services(settings, connect_database(app, settings, clock), clock)
    app.extensions["broker"] = services
    init_web(app, settings)
    embedded.init_app(app, services)
    for blueprint in (connect, connections, sign_in, console, api, docs, hooks, ops, metrics):
        app.register_blueprint(blueprint)
    limits.init_app(app, settings)
    # For `flask --app wsgi …`. Flask-Migrate's own commands, for making migrations, go by another name than our `db`.
    app.cli = BrokerCommands(app.name)
    app.cli.add_command(migrations, "migrations")
    return app


def add_demo(app: Flask, settings: Settings) -> None:
    """Add the pretended host's page; ignored in production."""
    if not settings.production:
        from broker.web.demo import blueprint

        app.register_blueprint(blueprint)
        app.add_url_rule("/", view_func=lambda: redirect(url_for("demo.index"), 302))


def connect_database(app: Flask, settings: Settings, clock: Clock) -> Database:
    """Bind the application to its database; nothing is opened yet."""
    app.config["SQLALCHEMY_DATABASE_URI"] = settings.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(settings.database_url)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_private(settings.database_url)
    db.init_app(app)
    Migrate(app, db, directory=str(migrations_path()))
    with app.app_context():
        engine = db.engine
    prepare(engine)
    return Database(engine, clock)


def build_services(
    settings: Settings, database: Database, clock: Clock, providers: Mapping[str, Provider] | None = None
) -> Services:
    """Build the collaborators, each from those below it; `providers` are those discovered unless given."""
    agent = f"sequin-oauth-broker/{__version__}"
    http = Http(allow_plain_loopback=not settings.production, user_agent=agent)
    # Where hosts want to be told is theirs to say: a door of its own, that leads to no private address.
    outward = Http(allow_plain_loopback=not settings.production, user_agent=agent, may_connect=may_be_told(settings))
    oauth = OAuth(http, clock)
    vault = Vault(settings.encryption_keys)
    jobs = Jobs(database, clock)
    secrets = {
        app_circuit(key): digest(" ".join(secret.reveal() for secret in app.client_secrets))
        for key, app in settings.apps.items()
    }
    circuits = Circuits(database, clock, jobs, secrets=secrets)
    sequin = Sequin(
        http, url=settings.sequin_api_url, token=settings.sequin_api_token, clock=clock,
        watch=partial(circuits.watching, SEQUIN),
    )  # fmt: skip
    match = OAuthAppMatch(sequin, clock)
    apps = AppCatalogue(settings.apps, providers or discover())
    key_ring = KeyRing(database, vault, clock)
    audit_chain = AuditChain(database, clock, settings.secret_key)
    connections = Connections(database, clock, apps, jobs)
    notifications = Notifications(database=database, clock=clock, vault=vault, http=outward, jobs=jobs)
    sessions = Sessions(database, clock)
    idempotent_calls = IdempotentCalls(database, clock, vault)
    lifetime = timedelta(minutes=settings.flow_minutes)
    provider_events = ProviderEvents(database=database, clock=clock, apps=apps, jobs=jobs, approve=approved)
    journal = FlowJournal(database=database, clock=clock, apps=apps, vault=vault, jobs=jobs, lifetime=lifetime)
    links = Links(database, clock, apps, settings)
    timeline = Timeline(database)
    flows = Flows(
        journal=journal, database=database, clock=clock, apps=apps, settings=settings, oauth=oauth, http=http,
        vault=vault, jobs=jobs, circuits=circuits,
    )  # fmt: skip
    disconnections = Disconnections(
        database=database, clock=clock, apps=apps, vault=vault, http=http, sequin=sequin, jobs=jobs, circuits=circuits
    )
    operators = Operators(database, clock)

    def door(config: SignIn, which: Door, callback_url: str, admit: Admit) -> SignIns:
        provider = OpenIdProvider(config, oauth=oauth, http=http, clock=clock, production=settings.production)
        return SignIns(
            provider, door=which, admit=admit, callback_url=callback_url, database=database, clock=clock, vault=vault
        )

    people_sign_ins = operator_sign_ins = None
    if for_people := settings.sign_in:
        admit = People(for_people, database, clock).admit
        people_sign_ins = door(for_people, Door.PEOPLE, settings.sign_in_callback_url, admit)
    if for_staff := settings.operators_sign_in:
        admit = Staff(for_staff, operators).admit
        operator_sign_ins = door(for_staff, Door.OPERATORS, settings.operators_callback_url, admit)
    return Services(
        settings=settings,
        clock=clock,
        database=database,
        apps=apps,
        figures=Figures(database, clock, circuits, apps),
        overviews=Overviews(database, clock, jobs),
        audit_chain=audit_chain,
        audit_trail=AuditTrail(database, clock),
        key_ring=key_ring,
        resealing=Resealing(database, vault, clock, key_ring),
        api_keys=ApiKeys(database, clock),
        links=links,
        reconnects=Reconnects(links, flows),
        flows=flows,
        confirmations=Confirmations(database=database, clock=clock, flows=flows, journal=journal),
        flow_pages=FlowPages(
            journal=journal,
            database=database,
            clock=clock,
            apps=apps,
            connections=connections,
            return_origins=settings.return_origins,
        ),
        history=History(database),
        journal=journal,
        connections=connections,
        deliveries=Deliveries(
            database=database, clock=clock, apps=apps, vault=vault, sequin=sequin,
            match=match, jobs=jobs,
        ),
        purge=Purge(
            database=database, clock=clock, jobs=jobs, sessions=sessions, calls=idempotent_calls,
            chain=audit_chain,
            retention=settings.retention,
        ),
        reconciliation=Reconciliation(database=database, clock=clock, sequin=sequin, jobs=jobs),
        verifications=Verifications(
            database=database, clock=clock, apps=apps, sequin=sequin, jobs=jobs, keep_grants=settings.keep_grants
        ),
        refreshes=Refreshes(
            database=database, clock=clock, apps=apps, vault=vault, oauth=oauth, circuits=circuits, jobs=jobs
        ),
        provider_events=provider_events,
        probes=Probes(database=database, clock=clock, apps=apps, vault=vault, http=http, circuits=circuits, jobs=jobs),
        approvals=Approvals(database=database, clock=clock, apps=apps, http=http, circuits=circuits, jobs=jobs),
        disconnections=disconnections,
        bulk_runs=BulkRuns(
            database=database, clock=clock, jobs=jobs, connections=connections, disconnections=disconnections
        ),
        discards=Discards(
            database=database, clock=clock, apps=apps, journal=journal, http=http, jobs=jobs, circuits=circuits
        ),
        erasures=Erasures(
            database=database, clock=clock, jobs=jobs, journal=journal, disconnections=disconnections
        ),
        idempotent_calls=idempotent_calls,
        moving=Moving(database=database, clock=clock, apps=apps, vault=vault, jobs=jobs),
        sequin=sequin,
        circuits=circuits,
        oauth_apps=OAuthApps(database=database, apps=apps, sequin=sequin, match=match, jobs=jobs),
        doctor=Doctor(
            settings=settings, clock=clock, database=database, apps=apps, jobs=jobs, circuits=circuits,
            key_ring=key_ring, sequin=sequin, http=http, provider_events=provider_events,
            audit_chain=audit_chain,
            sign_ins=tuple(one for one in (people_sign_ins, operator_sign_ins) if one is not None),
        ),
        jobs=jobs,
        workload=Workload(database, clock, jobs),
        operators=operators,
        sessions=sessions,
        people_sign_ins=people_sign_ins,
        operator_sign_ins=operator_sign_ins,
        self_service=SelfService(database, apps, links, flows),
        timeline=timeline,
        trials=Trials(
            database=database, clock=clock, apps=apps, links=links, timeline=timeline, begin=flows.begin
        ),
        events=Events(database),
        notifications=notifications,
        webhook_endpoints=WebhookEndpoints(
            database=database, clock=clock, vault=vault, http=outward, jobs=jobs, notifications=notifications,
            https_only=settings.production,
        ),
    )  # fmt: skip


def templates_path() -> Path:
    """Return the folder of templates: inside an installed package, or beside it in a checkout."""
    packaged = Path(str(files("broker"))) / "templates"
    return packaged if packaged.is_dir() else packaged.parent.parent / "templates"
