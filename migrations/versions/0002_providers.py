"""Providers complete: refresh, probes, webhooks in, approvals, reconnects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENTS = (
    "grant_expires_at", "refresh_expires_at", "refreshing_since", "interrupted_at", "failing_since", "probed_at",
)  # fmt: skip


def upgrade() -> None:
    with op.batch_alter_table("connections") as batch:
        batch.alter_column("account_id", existing_type=sa.String(length=255), nullable=True)
        batch.add_column(sa.Column("requester_id", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("trouble", sa.String(length=64), nullable=True))
        for name in MOMENTS:
            batch.add_column(sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("flows") as batch:
        batch.add_column(
            sa.Column("reconnects_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True)
        )
        batch.create_foreign_key(
            op.f("fk_flows_reconnects_id_connections"), "connections", ["reconnects_id"], ["id"]
        )
    with op.batch_alter_table("circuits") as batch:
        batch.add_column(sa.Column("refused_secrets", sa.String(length=64), nullable=True))
    # Every live connection is looked at now and then at its provider; until now only Sequin was asked.
    op.execute(
        "INSERT INTO jobs (kind, subject_id, state, due_at, fence, generation, failures, created_at, updated_at) "
        "SELECT 'probe', id, 'waiting', CURRENT_TIMESTAMP, 0, 0, 0, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP "
        "FROM connections WHERE disconnected_at IS NULL"
    )
    op.create_table(
        "provider_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("app_key", sa.String(length=40), nullable=False),
        sa.Column("delivery_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("notice", sa.String(length=32), nullable=False),
        sa.Column(
            "facts", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("processed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provider_events")),
        sa.UniqueConstraint("app_key", "delivery_id", name=op.f("uq_provider_events_app_key_delivery_id")),
    )
    op.create_index(op.f("ix_provider_events_received_at"), "provider_events", ["received_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_provider_events_received_at"), table_name="provider_events")
    op.drop_table("provider_events")
    with op.batch_alter_table("circuits") as batch:
        batch.drop_column("refused_secrets")
    with op.batch_alter_table("flows") as batch:
        batch.drop_constraint(op.f("fk_flows_reconnects_id_connections"), type_="foreignkey")
        batch.drop_column("reconnects_id")
    op.execute("DELETE FROM jobs WHERE kind IN ('probe', 'refresh', 'provider_event')")
    # What has no account yet has no place in the older tables.
    waiting = "(SELECT id FROM connections WHERE account_id IS NULL)"
    op.execute(f"UPDATE flows SET connection_id = NULL WHERE connection_id IN {waiting}")
    op.execute("DELETE FROM connections WHERE account_id IS NULL")
    with op.batch_alter_table("connections") as batch:
        for name in (*MOMENTS, "trouble", "requester_id"):
            batch.drop_column(name)
        batch.alter_column("account_id", existing_type=sa.String(length=255), nullable=False)
