"""Indexes that keep what one step costs from growing.

An account's connections are found by all that names it: of several indexes that help, SQLite takes the longest. The
sessions of a link are looked for when links are forgotten.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_connections_account_id_app_key_mode", "connections", ["account_id", "app_key", "mode"])
    op.drop_index(op.f("ix_connections_account_id"), table_name="connections")
    op.create_index(op.f("ix_sessions_link_id"), "sessions", ["link_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_sessions_link_id"), table_name="sessions")
    op.create_index(op.f("ix_connections_account_id"), "connections", ["account_id"])
    op.drop_index("ix_connections_account_id_app_key_mode", table_name="connections")
