"""Due work of some kinds is found without the others

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    is_due = sa.text("due_at IS NOT NULL")
    op.create_index(
        "ix_jobs_kind_due", "jobs", ["kind", "due_at"], sqlite_where=is_due, postgresql_where=is_due
    )  # fmt: skip


def downgrade() -> None:
    """Remove it."""
    op.drop_index("ix_jobs_kind_due", "jobs")
