"""Sign-in at an OpenID provider, for people and for operators."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import broker.db

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("state_hash", sa.String(length=64), nullable=False),
        sa.Column("door", sa.String(length=16), nullable=False),
        sa.Column("browser_hash", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", broker.db.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("state_hash", name=op.f("pk_sign_ins")),
    )
    op.create_index(op.f("ix_sign_ins_browser_hash"), "sign_ins", ["browser_hash"])
    op.create_index(op.f("ix_sign_ins_expires_at"), "sign_ins", ["expires_at"])
    op.add_column("sessions", sa.Column("by_sign_in", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("operators", sa.Column("issuer", sa.String(length=500), nullable=True))
    op.add_column("operators", sa.Column("subject", sa.String(length=255), nullable=True))
    op.create_index("uq_operators_issuer_subject", "operators", ["issuer", "subject"], unique=True)


def downgrade() -> None:
    op.drop_index("uq_operators_issuer_subject", table_name="operators")
    with op.batch_alter_table("operators") as batch:
        batch.drop_column("subject")
        batch.drop_column("issuer")
    with op.batch_alter_table("sessions") as batch:
        batch.drop_column("by_sign_in")
    op.drop_table("sign_ins")
