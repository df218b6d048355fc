"""The operators' console: `/ops`. What each role may do is written down here, once; what is not is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flask import Blueprint, g, redirect, request
from werkzeug.wrappers import Response

from broker.errors import Refused
from broker.models import Role
from broker.sessions import SignedInOperator
from broker.web import cookies, services
from broker.web.console import (
    audit,
    bulk,
    connections,
    jobs,
    keys,
    links,
    operators,
    orphans,
    overview,
    providers,
    settings,
    sign_in,
    trials,
    webhooks,
)

blueprint = Blueprint("console", __name__, url_prefix="/ops")
blueprint.add_url_rule("/sign-in", view_func=sign_in.show_sign_in, methods=["GET"])
blueprint.add_url_rule("/sign-in", view_func=sign_in.do_sign_in, methods=["POST"])
blueprint.add_url_rule("/sign-in/openid", view_func=sign_in.begin_openid, methods=["POST"])
blueprint.add_url_rule("/sign-in/callback", view_func=sign_in.openid_callback, methods=["GET"])
blueprint.add_url_rule("/sign-out", view_func=sign_in.do_sign_out, methods=["POST"])
blueprint.add_url_rule("/sign-out-everywhere", view_func=sign_in.sign_out_everywhere, methods=["POST"])
blueprint.add_url_rule("/operators", view_func=operators.list_operators, methods=["GET"])
blueprint.add_url_rule("/operators/end-sessions", view_func=operators.end_sessions, methods=["POST"])
blueprint.add_url_rule("/", view_func=overview.home, methods=["GET"])
blueprint.add_url_rule("/overview/<key>.csv", view_func=overview.export_overview, methods=["GET"])
blueprint.add_url_rule("/connections", view_func=connections.list_connections, methods=["GET"])
blueprint.add_url_rule("/connections.csv", view_func=connections.export_connections, methods=["GET"])
blueprint.add_url_rule("/connections/<ref>", view_func=connections.show_connection, methods=["GET"])
blueprint.add_url_rule("/connections/<ref>/check", view_func=connections.check_connection, methods=["POST"])
blueprint.add_url_rule("/connections/<ref>/retry", view_func=connections.retry_connection, methods=["POST"])
blueprint.add_url_rule("/connections/<ref>/disconnect", view_func=connections.confirm_disconnect, methods=["GET"])
blueprint.add_url_rule("/connections/<ref>/disconnect", view_func=connections.disconnect, methods=["POST"])
blueprint.add_url_rule("/bulk", view_func=bulk.list_runs, methods=["GET"])
blueprint.add_url_rule("/bulk/new", view_func=bulk.confirm_bulk, methods=["GET"])
blueprint.add_url_rule("/bulk/new", view_func=bulk.start_bulk, methods=["POST"])
blueprint.add_url_rule("/bulk/<ref>", view_func=bulk.show_run, methods=["GET"])
blueprint.add_url_rule("/bulk/<ref>/stop", view_func=bulk.stop_run, methods=["POST"])
blueprint.add_url_rule("/links", view_func=links.list_links, methods=["GET"])
blueprint.add_url_rule("/links/new", view_func=links.new_link, methods=["GET"])
blueprint.add_url_rule("/links/new", view_func=links.create_link, methods=["POST"])
blueprint.add_url_rule("/links/<public_id>/revoke", "confirm_revoke_link", links.confirm_revoke, methods=["GET"])
blueprint.add_url_rule("/links/<public_id>/revoke", view_func=links.revoke_link, methods=["POST"])
blueprint.add_url_rule("/jobs", view_func=jobs.list_jobs, methods=["GET"])
blueprint.add_url_rule("/jobs/retry", "confirm_retry_jobs", jobs.confirm_retry, methods=["GET"])
blueprint.add_url_rule("/jobs/retry", view_func=jobs.retry_jobs, methods=["POST"])
blueprint.add_url_rule("/jobs/<int:job_id>/retry", view_func=jobs.retry_job, methods=["POST"])
blueprint.add_url_rule("/settings", view_func=settings.show_settings, methods=["GET"])
blueprint.add_url_rule("/keys", view_func=keys.list_keys, methods=["GET"])
blueprint.add_url_rule("/keys", view_func=keys.create_key, methods=["POST"])
blueprint.add_url_rule("/keys/<public_id>/revoke", "confirm_revoke_key", keys.confirm_revoke, methods=["GET"])
blueprint.add_url_rule("/keys/<public_id>/revoke", view_func=keys.revoke_key, methods=["POST"])
blueprint.add_url_rule("/orphans", view_func=orphans.list_orphans, methods=["GET"])
blueprint.add_url_rule("/orphans/<credential_id>/forget", view_func=orphans.forget_orphan, methods=["POST"])
blueprint.add_url_rule("/providers", view_func=providers.show_providers, methods=["GET"])
blueprint.add_url_rule("/providers/<app_key>/test", view_func=trials.begin_trial, methods=["POST"])
blueprint.add_url_rule("/tests/<ref>", view_func=trials.show_trial, methods=["GET"])
blueprint.add_url_rule("/audit", view_func=audit.show_audit, methods=["GET"])
blueprint.add_url_rule("/audit/<int:record_id>", "show_audit_record", audit.show_record, methods=["GET"])
blueprint.add_url_rule("/audit.csv", view_func=audit.export_audit, methods=["GET"])
blueprint.add_url_rule("/webhooks", "list_webhook_endpoints", webhooks.list_endpoints, methods=["GET"])
blueprint.add_url_rule("/webhooks/<public_id>", "show_webhook_endpoint", webhooks.show_endpoint, methods=["GET"])
blueprint.add_url_rule(
    "/webhooks/<public_id>/enable", "enable_webhook_endpoint", webhooks.enable_endpoint, methods=["POST"]
)
blueprint.add_url_rule("/webhooks/<public_id>/test", "test_webhook_endpoint", webhooks.test_endpoint, methods=["POST"])
blueprint.add_url_rule(
    "/webhooks/<public_id>/resend-parked", "resend_parked_webhooks", webhooks.resend_parked, methods=["POST"]
)
blueprint.add_url_rule(
    "/webhooks/<public_id>/deliveries/<event_id>/resend", "resend_webhook", webhooks.resend_delivery, methods=["POST"]
)

OPEN = frozenset({"console.show_sign_in", "console.do_sign_in", "console.begin_openid", "console.openid_callback"})
"""Endpoints for people who are not signed in."""

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "console.do_sign_out": Role.VIEWER,
        "console.sign_out_everywhere": Role.VIEWER,
        "console.list_operators": Role.ADMIN,
        "console.end_sessions": Role.ADMIN,
        "console.home": Role.VIEWER,
        "console.export_overview": Role.VIEWER,
        "console.list_connections": Role.VIEWER,
        "console.export_connections": Role.OPERATOR,
        "console.show_connection": Role.VIEWER,
        "console.list_runs": Role.VIEWER,
        "console.confirm_bulk": Role.OPERATOR,
        "console.start_bulk": Role.OPERATOR,
        "console.show_run": Role.VIEWER,
        "console.stop_run": Role.OPERATOR,
        "console.list_links": Role.VIEWER,
        "console.new_link": Role.OPERATOR,
        "console.create_link": Role.OPERATOR,
        "console.confirm_revoke_link": Role.OPERATOR,
        "console.revoke_link": Role.OPERATOR,
        "console.list_jobs": Role.VIEWER,
        "console.retry_job": Role.OPERATOR,
        "console.confirm_retry_jobs": Role.OPERATOR,
        "console.retry_jobs": Role.OPERATOR,
        "console.show_settings": Role.VIEWER,
        "console.list_keys": Role.ADMIN,
        "console.create_key": Role.ADMIN,
        "console.confirm_revoke_key": Role.ADMIN,
        "console.revoke_key": Role.ADMIN,
        "console.list_orphans": Role.VIEWER,
        "console.show_providers": Role.VIEWER,
        "console.begin_trial": Role.OPERATOR,
        "console.show_trial": Role.OPERATOR,
        "console.show_audit": Role.VIEWER,
        "console.show_audit_record": Role.VIEWER,
        "console.export_audit": Role.OPERATOR,
        "console.list_webhook_endpoints": Role.VIEWER,
        "console.show_webhook_endpoint": Role.VIEWER,
        "console.enable_webhook_endpoint": Role.OPERATOR,
        "console.test_webhook_endpoint": Role.OPERATOR,
        "console.resend_parked_webhooks": Role.OPERATOR,
        "console.resend_webhook": Role.OPERATOR,
        "console.check_connection": Role.OPERATOR,
        "console.retry_connection": Role.OPERATOR,
        "console.confirm_disconnect": Role.OPERATOR,
        "console.disconnect": Role.OPERATOR,
        "console.forget_orphan": Role.OPERATOR,
    }
)
"""The least role each endpoint asks for. An endpoint in neither table is refused to everybody."""

_RANKS = {role: rank for rank, role in enumerate(Role)}


class NotPermitted(Refused):
    """The operator's role does not include this."""

    code = "not_permitted"
    status = 403
    heading = "You do not have access to this"
    advice = "Your role does not include it. An admin can create an operator with a higher role."


def may(operator: SignedInOperator, endpoint: str) -> bool:
    """Tell whether an operator's role includes an endpoint."""
    least = ROLES.get(endpoint)
    return least is not None and _RANKS[operator.role] >= _RANKS[least]


@blueprint.before_request
def guard() -> Response | None:
    """Let nobody past who is not signed in with a role that includes the endpoint."""
    endpoint = request.endpoint or ""
    token = cookies.read(cookies.OPERATOR)
    signed_in = services().sessions.find(token)
    g.operator = signed_in.operator if signed_in is not None else None
    if endpoint in OPEN:
        return None
    if g.operator is None:
        return redirect(sign_in.sign_in_address(ended=token is not None), 303)
    if not may(g.operator, endpoint):
        raise NotPermitted
    return None


@blueprint.context_processor
def who() -> dict[str, object]:
    """Tell the templates who is signed in, what to leave out for them, and which other side is away."""
    operator = g.get("operator")
    return {
        "operator": operator,
        "may": lambda endpoint: operator is not None and may(operator, endpoint),
        "outages": providers.outages() if operator is not None else [],
    }
