"""Links that were taken back are few, and looked for among very many."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    revoked = sa.text("revoked_at IS NOT NULL")
    op.create_index("ix_links_revoked", "links", ["id"], sqlite_where=revoked, postgresql_where=revoked)


def downgrade() -> None:
    op.drop_index("ix_links_revoked", table_name="links")
