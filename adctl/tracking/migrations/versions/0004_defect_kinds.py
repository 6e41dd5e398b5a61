"""Add the kind of defect, by a classifier, to the verdicts of the server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("verdicts", sa.Column("kind", sa.String, nullable=True))
    op.add_column("verdicts", sa.Column("kind_probability", sa.Float, nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("verdicts", "kind_probability")
    op.drop_column("verdicts", "kind")
