"""Grants that end unattached are ended at the provider; since when a connection drifts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("flows", sa.Column("account_id", sa.String(length=255), nullable=True))
    op.add_column("flows", sa.Column("account_mode", sa.String(length=8), nullable=True))
    op.create_index(
        "ix_flows_account_id",
        "flows",
        ["account_id"],
        unique=False,
        sqlite_where=sa.text("account_id IS NOT NULL"),
        postgresql_where=sa.text("account_id IS NOT NULL"),
    )
    op.add_column("connections", sa.Column("drifted_at", sa.DateTime(timezone=True), nullable=True))
    # What drifted before is known to have done so by its last check at the latest.
    op.execute("UPDATE connections SET drifted_at = checked_at WHERE drift IS NOT NULL")


def downgrade() -> None:
    op.drop_column("connections", "drifted_at")
    op.drop_index("ix_flows_account_id", table_name="flows")
    op.drop_column("flows", "account_mode")
    op.drop_column("flows", "account_id")
