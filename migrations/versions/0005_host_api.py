"""Reconnect links, confirmation by the host, repeatable calls, erasure on request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("end_users", sa.Column("erasure_asked_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("links", sa.Column("reconnects_id", big_id, nullable=True))
    for table in ("links", "flows"):
        op.add_column(table, sa.Column("confirm", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("flows", sa.Column("code_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("flows", sa.Column("code_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "idempotent_calls",
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("claim", sa.String(length=64), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_hash", name=op.f("pk_idempotent_calls")),
    )
    op.create_index(op.f("ix_idempotent_calls_expires_at"), "idempotent_calls", ["expires_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_idempotent_calls_expires_at"), table_name="idempotent_calls")
    op.drop_table("idempotent_calls")
    op.drop_column("flows", "code_expires_at")
    op.drop_column("flows", "code_sealed")
    for table in ("flows", "links"):
        op.drop_column(table, "confirm")
    op.drop_column("links", "reconnects_id")
    op.drop_column("end_users", "erasure_asked_at")
