"""Indexes for lists of a million connections: each filter in the order of the list, metadata in rows of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

NARROWED = ("app_key", "provider", "kind", "mode", "connected_at")
STANDING = (
    "CASE WHEN disconnected_at IS NOT NULL THEN 'disconnected' "
    "WHEN revoked_at IS NOT NULL THEN 'revoked' "
    "WHEN interrupted_at IS NOT NULL THEN 'interrupted' "
    "WHEN health = 'error' THEN 'error' "
    "WHEN import_state IN ('parked', 'held') THEN 'import_failed' "
    "WHEN account_id IS NULL THEN 'awaiting_approval' "
    "WHEN import_state = 'pending' THEN 'pending' "
    "WHEN health = 'ok' THEN 'ok' ELSE 'unknown' END"
)
# Members as they are compared: texts unquoted, everything else as JSON shows it; null, and what is too long to be asked
# for, left out.
MEMBERS = {
    "sqlite": (
        "INSERT INTO connection_metadata (connection_id, key, value) SELECT id, key, value FROM ("
        "SELECT c.id AS id, m.key AS key, CASE WHEN m.type IN ('true', 'false') THEN m.type"
        " ELSE CAST(m.value AS TEXT) END AS value"
        " FROM connections AS c, json_each(c.host_metadata) AS m"
        " WHERE json_type(c.host_metadata) = 'object' AND m.type <> 'null')"
        " WHERE length(key) <= 64 AND length(value) <= 500"
    ),
    "postgresql": (
        "INSERT INTO connection_metadata (connection_id, key, value)"
        " SELECT c.id, m.key, m.value FROM connections AS c, jsonb_each_text(c.host_metadata) AS m"
        " WHERE jsonb_typeof(c.host_metadata) = 'object' AND m.value IS NOT NULL"
        " AND length(m.key) <= 64 AND length(m.value) <= 500"
    ),
}


def upgrade() -> None:
    op.create_table(
        "connection_metadata",
        sa.Column("connection_id", big_id, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=500), nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"], ["connections.id"], name=op.f("fk_connection_metadata_connection_id_connections")
        ),
        sa.PrimaryKeyConstraint("connection_id", "key", name=op.f("pk_connection_metadata")),
    )
    op.execute(MEMBERS[op.get_bind().dialect.name])
    op.create_index("ix_connection_metadata_key_value", "connection_metadata", ["key", "value", "connection_id"])
    for column in NARROWED:
        op.create_index(f"ix_connections_{column}_id", "connections", [column, "id"])
    op.create_index("ix_connections_standing_id", "connections", [sa.text(f"({STANDING})"), "id"])
    passed = sa.text("health = 'ok'")
    op.create_index(
        "ix_connections_passed", "connections", ["checked_at"], sqlite_where=passed, postgresql_where=passed
    )


def downgrade() -> None:
    op.drop_index("ix_connections_passed", table_name="connections")
    op.drop_index("ix_connections_standing_id", table_name="connections")
    for column in NARROWED:
        op.drop_index(f"ix_connections_{column}_id", table_name="connections")
    op.drop_index("ix_connection_metadata_key_value", table_name="connection_metadata")
    op.drop_table("connection_metadata")
