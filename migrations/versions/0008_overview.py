"""What was counted for the overview, and links by when they were made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "counted_overviews",
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("found", json, nullable=False),
        sa.PrimaryKeyConstraint("period"),
    )
    op.create_index("ix_links_created_at", "links", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_links_created_at", table_name="links")
    op.drop_table("counted_overviews")
