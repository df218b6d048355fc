"""Indexes for the operators' list: how names and e-mails begin, what changed last, and what failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BEGINNINGS = {"ix_connections_account_name_begins": ("connections", "account_name"), "ix_end_users_email_begins": (
    "end_users",
    "email",
)}


def upgrade() -> None:
    # Bytewise, so that a beginning is a range; SQLite's own way leaves the case of other letters than ASCII's as it is.
    form = "{} COLLATE NOCASE" if op.get_bind().dialect.name == "sqlite" else 'lower({}) COLLATE "C"'
    for name, (table, column) in BEGINNINGS.items():
        op.create_index(name, table, [sa.text(form.format(column))])
    op.create_index("ix_connections_updated_at_id", "connections", ["updated_at", "id"])
    failed = sa.text("error IS NOT NULL")
    op.create_index("ix_jobs_failed", "jobs", ["state", "id"], sqlite_where=failed, postgresql_where=failed)


def downgrade() -> None:
    op.drop_index("ix_jobs_failed", table_name="jobs")
    op.drop_index("ix_connections_updated_at_id", table_name="connections")
    for name, (table, _) in BEGINNINGS.items():
        op.drop_index(name, table_name=table)
