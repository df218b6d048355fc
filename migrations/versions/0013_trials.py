"""Links and flows that only try an OAuth app out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("links", "flows"):
        op.add_column(table, sa.Column("trial", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    for table in ("flows", "links"):
        with op.batch_alter_table(table) as batch:
            batch.drop_column("trial")
