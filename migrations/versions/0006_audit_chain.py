"""The chain over the audit trail: one seal for each record, and where the chain begins and ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('audit_seals',
    sa.Column('number', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('record_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('content', sa.String(length=64), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('mac', sa.String(length=64), nullable=False),
    sa.Column('key_id', sa.String(length=16), nullable=False),
    sa.Column('sealed_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('number', name=op.f('pk_audit_seals')),
    sa.UniqueConstraint('record_id', name=op.f('uq_audit_seals_record_id'))
    )
    op.create_table('audit_chain',
    sa.Column('id', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('head_number', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('head_record_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('head_digest', sa.String(length=64), nullable=False),
    sa.Column('anchor_number', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('anchor_record_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('anchor_digest', sa.String(length=64), nullable=False),
    sa.Column('mac', sa.String(length=64), nullable=False),
    sa.Column('key_id', sa.String(length=16), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_chain'))
    )
    op.drop_index(op.f('ix_audit_target'), table_name='audit')
    op.create_index('ix_audit_at_id', 'audit', ['at', 'id'], unique=False)
    op.create_index('ix_audit_action_at_id', 'audit', ['action', 'at', 'id'], unique=False)
    op.create_index('ix_audit_actor_at_id', 'audit', ['actor', 'at', 'id'], unique=False)
    op.create_index('ix_audit_target_at_id', 'audit', ['target', 'at', 'id'], unique=False)


def downgrade() -> None:
    op.drop_index('ix_audit_target_at_id', table_name='audit')
    op.drop_index('ix_audit_actor_at_id', table_name='audit')
    op.drop_index('ix_audit_action_at_id', table_name='audit')
    op.drop_index('ix_audit_at_id', table_name='audit')
    op.create_index(op.f('ix_audit_target'), 'audit', ['target'], unique=False)
    op.drop_table('audit_chain')
    op.drop_table('audit_seals')
