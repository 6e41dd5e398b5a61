"""Create the table of verdicts that wait for a sink."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "spool",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("sink", sa.String, nullable=False),
        sa.Column("verdict_id", sa.String(26), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.UniqueConstraint("sink", "verdict_id", name="spool_by_verdict"),
    )
    op.create_index("spool_by_sink", "spool", ["sink", "number"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("spool")
