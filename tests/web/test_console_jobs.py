"""The jobs page: what waits, runs, is tried again or is parked, and how to go on."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from broker.models import Job, JobState, Role
from broker.operators import Operators
from tests.house import House
from tests.web.test_console import csrf_of, signed_in, text_of


def a_job(app: Flask, house: House, state: JobState, subject: int = 1, **changes: Any) -> int:
    database = app.extensions["broker"].database
    with database.read() as connection:
        now = database.now(connection)
    values: dict[str, Any] = {
        "kind": "import", "subject_id": subject, "state": state, "due_at": None if state is JobState.PARKED else now,
        "created_at": now, "updated_at": now,
    }  # fmt: skip
    return house.insert(Job, **(values | changes))


def test_jobs_are_counted_and_what_is_parked_comes_first_with_its_reason(
    app: Flask, house: House, operators: Operators
) -> None:
    ref = house.connection(house.end_user("jo-1"))
    a_job(app, house, JobState.PARKED, 1, error="sequin_unauthorized", error_detail="401 <b>", failures=3)
    a_job(app, house, JobState.WAITING, 2)
    a_job(app, house, JobState.WAITING, 3, error="sequin_unavailable", failures=1)
    a_job(app, house, JobState.RUNNING, 4)
    a_job(app, house, JobState.DONE, 5, due_at=None)
    page = signed_in(app, operators, Role.VIEWER).get("/ops/jobs")
    for words in ("Parked: 1", "Retrying: 1", "Running: 1", "Waiting: 1", "sequin_unauthorized", "SEQUIN_API_TOKEN"):
        assert words in text_of(page)
    assert "401 &lt;b&gt;" in page.get_data(as_text=True)
    assert f'href="/ops/connections/{ref}"' in text_of(page)
    assert "Retry all parked" not in text_of(page)


@pytest.mark.parametrize("state", ["parked", "retrying", "running", "waiting", "nonsense"])
def test_a_group_without_jobs_says_so(app: Flask, operators: Operators, state: str) -> None:
    page = signed_in(app, operators).get(f"/ops/jobs?state={state}")
    assert page.status_code == 200
    assert "Nothing is" in text_of(page)


def test_one_parked_job_is_retried_and_that_is_recorded(app: Flask, house: House, operators: Operators) -> None:
    one, other = (a_job(app, house, JobState.PARKED, subject, error="x", failures=9) for subject in (1, 2))
    client = signed_in(app, operators)
    csrf = csrf_of(client.get("/ops/jobs"))
    page = client.post(f"/ops/jobs/{one}/retry", data={"csrf_token": csrf}, follow_redirects=True)
    assert "Queued again." in text_of(page)
    assert "Parked: 1" in text_of(page)
    assert house.value(sa.select(Job.state).where(Job.id == one)) == JobState.WAITING
    assert house.value(sa.select(Job.state).where(Job.id == other)) == JobState.PARKED
    assert ("operator", "operator@example.com", "jobs.retried", f"job {one}") in house.audited()
    for gone in (one, 10**30):
        assert client.post(f"/ops/jobs/{gone}/retry", data={"csrf_token": csrf}).status_code == 404


def test_all_parked_jobs_are_retried(app: Flask, house: House, operators: Operators) -> None:
    for subject in (1, 2):
        a_job(app, house, JobState.PARKED, subject, error="x")
    client = signed_in(app, operators)
    assert 'href="/ops/jobs/retry">Retry all parked' in text_of(client.get("/ops/jobs"))
    asked = client.get("/ops/jobs/retry")
    assert "Retry 2 parked jobs?" in text_of(asked)
    csrf = csrf_of(asked)
    page = client.post("/ops/jobs/retry", data={"csrf_token": csrf}, follow_redirects=True)
    assert "All queued again." in text_of(page)
    assert "Parked: 0" in text_of(page)
    assert ("operator", "operator@example.com", "jobs.retried", "parked") in house.audited()
    trail = len(house.audited())
    client.post("/ops/jobs/retry", data={"csrf_token": csrf})
    assert len(house.audited()) == trail
    assert client.get("/ops/jobs/retry").headers["Location"] == "/ops/jobs?state=parked"
