"""What the host API answers, made from what use cases return: the one place where the two meet."""

from __future__ import annotations

from broker.apps import OfferedApp
from broker.circuits import OpenCircuit
from broker.confirmation import FlowView
from broker.connections import ConnectionView
from broker.contract import (
    AppAnswer,
    ConnectionAnswer,
    CreatedLinkAnswer,
    EndUserIdAnswer,
    ErasureAnswer,
    FlowAnswer,
    LinkAnswer,
    SavedConnectionAnswer,
)
from broker.erasure import Erasure
from broker.links import CreatedLink, LinkView


def created_link_answer(link: CreatedLink) -> CreatedLinkAnswer:
    """Return the answer for a link just made."""
    return CreatedLinkAnswer(id=link.id, url=link.url, expires_at=link.expires_at)


def link_answer(link: LinkView) -> LinkAnswer:
    """Return the answer for a link."""
    return LinkAnswer(
        id=link.id,
        state=link.state,
        end_user=EndUserIdAnswer(id=link.end_user_id),
        apps=None if link.apps is None else list(link.apps),
        return_url=link.return_url,
        auto_return=link.auto_return,
        connection=link.reconnects,
        confirm=link.confirm,
        manage=link.manage,
        connections=[SavedConnectionAnswer(app=saved.app, ref=saved.ref) for saved in link.connections],
        created_at=link.created_at,
        expires_at=link.expires_at,
    )


def flow_answer(flow: FlowView) -> FlowAnswer:
    """Return the answer for a flow."""
    return FlowAnswer(
        ref=flow.ref,
        state=flow.state.value,
        hold=flow.hold,
        failure=flow.failure,
        app=flow.app,
        end_user=EndUserIdAnswer(id=flow.end_user_id),
        connection=flow.connection,
        updated_at=flow.updated_at,
    )


def app_answer(app: OfferedApp, circuit: OpenCircuit | None) -> AppAnswer:
    """Return the answer for an app, with the circuit that is open for it."""
    return AppAnswer(
        key=app.key,
        provider=app.provider.name,
        title=app.title,
        kind=app.provider.kind,
        scopes=list(app.scopes),
        why=app.config.why,
        unavailable_since=circuit.since if circuit else None,
        next_try_at=circuit.next_try_at if circuit else None,
    )


def connection_answer(view: ConnectionView) -> ConnectionAnswer:
    """Return the answer for a connection."""
    person, account, hand_off = view.end_user, view.account, view.hand_off
    return ConnectionAnswer.model_validate(
        {
            "ref": view.ref,
            "end_user": {"id": person.id, "email": person.email, "name": person.name},
            "provider": view.provider,
            "app": view.app,
            "kind": view.kind,
            "account": account and {"id": account.id, "name": account.name, "type": account.type, "mode": account.mode},
            "scopes": list(view.scopes),
            "status": view.status,
            "note": view.note,
            "health": {
                "status": view.health.status,
                "notes": list(view.health.notes),
                "checked_at": view.health.checked_at,
            },
            "sequin": {
                "credential_id": hand_off.credential_id,
                "oauth_app_id": hand_off.oauth_app_id,
                "imported_at": hand_off.imported_at,
                "verified_at": hand_off.verified_at,
            },
            "steps": [{"name": step.name.value, "state": step.state.value, "at": step.at} for step in view.steps],
            "metadata": dict(view.metadata),
            "created_at": view.created_at,
            "updated_at": view.updated_at,
        }
    )


def erasure_answer(erasure: Erasure) -> ErasureAnswer:
    """Return the answer for an erasure under way."""
    return ErasureAnswer(
        id=erasure.end_user_id,
        state="erasing",
        connections_left=erasure.connections_left,
        remains=list(erasure.remains),
    )
