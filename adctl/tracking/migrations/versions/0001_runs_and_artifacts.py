"""Create the tables of runs and of the things made from them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    texts = ("name", "folder", "state", "started", "finished", "arch", "dataset", "category", "model")
    op.create_table(
        "runs",
        sa.Column("id", sa.String(26), primary_key=True),
        *(sa.Column(name, sa.String, nullable=False, unique=name == "folder") for name in texts),
        sa.Column("seed", sa.Integer),
        sa.Column("images", sa.Integer),
        sa.Column("seconds", sa.Float),
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("model_sha256", "images_sha256")),
        *(sa.Column(name, sa.String, nullable=False) for name in ("version", "machine")),
        sa.Column("note", sa.Text, nullable=False),
        *(sa.Column(name, sa.JSON, nullable=False) for name in ("tags", "metrics", "settings")),
    )
    op.create_index("runs_by_name", "runs", ["name"])
    op.create_index("runs_by_arch_and_category", "runs", ["arch", "category"])
    op.create_table(
        "artifacts",
        sa.Column("run", sa.String(26), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("id", sa.String(26), primary_key=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("kind", "path", "time", "source")),
        sa.Column("sha256", sa.String(64)),
        *(sa.Column(name, sa.JSON, nullable=False) for name in ("metrics", "intervals", "facts")),
    )


def downgrade() -> None:
    """Remove the tables; the run folders hold everything."""
    op.drop_table("artifacts")
    op.drop_table("runs")
