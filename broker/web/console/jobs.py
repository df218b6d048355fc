"""Jobs in the console: what waits, runs, is tried again or is parked, why, and how to go on."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.web import services
from broker.workload import MOST_COUNTED, MOST_LISTED, Group

MEANINGS = {
    Group.PARKED: "Trying again by itself would fail the same way: somebody has to look, then retry.",
    Group.RETRYING: "The last try failed; the next one comes by itself.",
    Group.RUNNING: "A worker is at it.",
    Group.WAITING: "Comes when it is due, or as soon as a worker is free.",
}


def list_jobs() -> str:
    """Show how many jobs stand how, and the jobs of one group."""
    wanted = request.args.get("state", "")
    counts = services().workload.counts()
    # Without a word, what needs somebody comes first.
    busiest = next((group for group in Group if counts[group]), Group.PARKED)
    group = Group(wanted) if wanted in set(Group) else busiest
    return render_template(
        "console/jobs.html",
        group=group,
        groups=MEANINGS,
        counts={one: f"more than {MOST_COUNTED:,}" if count > MOST_COUNTED else count for one, count in counts.items()},
        jobs=services().workload.list(group),
        most=MOST_LISTED,
        done=request.args.get("done", ""),
    )


def retry_job(job_id: int) -> Response:
    """Let one parked job run again."""
    services().workload.retry(job_id, actor=_operator())
    return redirect(url_for("console.list_jobs", state=Group.PARKED, done="one"), 303)


def confirm_retry() -> ResponseReturnValue:
    """Say how many jobs would run again, before they do."""
    count = services().workload.counts()[Group.PARKED]
    if not count:
        return redirect(url_for("console.list_jobs", state=Group.PARKED), 303)
    many = f"more than {MOST_COUNTED:,}" if count > MOST_COUNTED else f"{count:,}"
    return render_template(
        "console/confirm.html",
        heading=f"Retry {many} parked job{'' if count == 1 else 's'}?",
        sentences=[
            "Each runs again as soon as a worker is free, in the order it was asked for.",
            "Where nothing was mended they fail again, and are parked again in the end.",
        ],
        address=url_for("console.retry_jobs"),
        label="Retry all",
        busy="Queueing…",
        back=url_for("console.list_jobs", state=Group.PARKED),
        keep="Leave them parked",
    )


def retry_jobs() -> Response:
    """Let every parked job run again."""
    services().workload.retry(None, actor=_operator())
    return redirect(url_for("console.list_jobs", state=Group.PARKED, done="all"), 303)


def _operator() -> Actor:
    return Actor("operator", g.operator.email)
