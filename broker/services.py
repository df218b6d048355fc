"""What the composition root builds and the views are handed: one place that names every collaborator."""

from __future__ import annotations

from dataclasses import dataclass

from broker.apikeys import ApiKeys
from broker.approvals import Approvals
from broker.apps import AppCatalogue
from broker.audit_chain import AuditChain
from broker.audit_trail import AuditTrail
from broker.bulk import BulkRuns
from broker.circuits import Circuits
from broker.clock import Clock
from broker.confirmation import Confirmations
from broker.connections import Connections
from broker.db import Database
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
from broker.idempotency import IdempotentCalls
from broker.jobs import Jobs
from broker.journal import FlowJournal
from broker.keyring import KeyRing
from broker.links import Links
from broker.matching import OAuthApps
from broker.moving import Moving
from broker.notifications import Notifications
from broker.operators import Operators
from broker.overview import Overviews
from broker.probes import Probes
from broker.provider_events import ProviderEvents
from broker.purge import Purge
from broker.reconciliation import Reconciliation
from broker.reconnects import Reconnects
from broker.refresh import Refreshes
from broker.resealing import Resealing
from broker.self_service import SelfService
from broker.sequin import Sequin
from broker.sessions import Sessions
from broker.settings import Settings
from broker.sign_ins import SignIns
from broker.timeline import Timeline
from broker.trials import Trials
from broker.verification import Verifications
from broker.webhook_endpoints import WebhookEndpoints
from broker.workload import Workload


@dataclass(frozen=True)
class Services:
    """The collaborators of one running broker."""

    settings: Settings
    clock: Clock
    database: Database
    apps: AppCatalogue
    figures: Figures
    overviews: Overviews
    audit_chain: AuditChain
    audit_trail: AuditTrail
    key_ring: KeyRing
    resealing: Resealing
    api_keys: ApiKeys
    links: Links
    flows: Flows
    flow_pages: FlowPages
    confirmations: Confirmations
    history: History
    journal: FlowJournal
    connections: Connections
    deliveries: Deliveries
    verifications: Verifications
    reconnects: Reconnects
    refreshes: Refreshes
    probes: Probes
    provider_events: ProviderEvents
    approvals: Approvals
    disconnections: Disconnections
    bulk_runs: BulkRuns
    discards: Discards
    erasures: Erasures
    idempotent_calls: IdempotentCalls
    moving: Moving
    reconciliation: Reconciliation
    purge: Purge
    sequin: Sequin
    circuits: Circuits
    oauth_apps: OAuthApps
    doctor: Doctor
    jobs: Jobs
    workload: Workload
    operators: Operators
    sessions: Sessions
    people_sign_ins: SignIns | None
    operator_sign_ins: SignIns | None
    self_service: SelfService
    timeline: Timeline
    trials: Trials
    events: Events
    notifications: Notifications
    webhook_endpoints: WebhookEndpoints
