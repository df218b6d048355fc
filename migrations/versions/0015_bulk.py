"""Bulk runs: one thing done to many connections, and what came of each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
json = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")
moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "bulk_runs",
        sa.Column("id", big_id, nullable=False),
        sa.Column("ref", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=320), nullable=False),
        sa.Column("narrowed", json, nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("stopped_at", moment, nullable=True),
        sa.Column("stopped_by", sa.String(length=320), nullable=True),
        sa.Column("ended_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulk_runs")),
        sa.UniqueConstraint("ref", name=op.f("uq_bulk_runs_ref")),
    )
    op.create_table(
        "bulk_items",
        sa.Column("run_id", big_id, nullable=False),
        sa.Column("connection_id", big_id, nullable=False),
        sa.Column("outcome", sa.String(length=8), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["bulk_runs.id"], name=op.f("fk_bulk_items_run_id_bulk_runs")),
        sa.ForeignKeyConstraint(
            ["connection_id"], ["connections.id"], name=op.f("fk_bulk_items_connection_id_connections")
        ),
        sa.PrimaryKeyConstraint("run_id", "connection_id", name=op.f("pk_bulk_items")),
    )
    op.create_index(op.f("ix_bulk_items_connection_id"), "bulk_items", ["connection_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_bulk_items_connection_id"), table_name="bulk_items")
    op.drop_table("bulk_items")
    op.drop_table("bulk_runs")
