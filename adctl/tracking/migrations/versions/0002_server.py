"""Create the tables of the server: verdicts, reviews, served models, keys and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String, nullable=False) for name in names]


def _identifier() -> sa.Column[str]:
    return sa.Column("id", sa.String(26), primary_key=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "verdicts",
        _identifier(),
        *_texts("time"),
        sa.Column("request", sa.String(26), nullable=False),
        *_texts("model"),
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("model_sha256", "calibration_sha256")),
        *_texts("name", "lot", "part", "client"),
        sa.Column("verdict", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Float) for name in ("score", "p_value", "probability", "threshold", "pixel_threshold")),
        *(sa.Column(name, sa.Integer) for name in ("width", "height")),
        sa.Column("boxes", sa.JSON, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Float, nullable=False),
        *_texts("image"),
        sa.Column("has_map", sa.Boolean, nullable=False),
    )
    for name in ("model", "verdict", "lot"):
        op.create_index(f"verdicts_by_{name}", "verdicts", [name, "id"])
    op.create_table(
        "reviews",
        _identifier(),
        sa.Column("verdict_id", sa.String(26), nullable=False),
        *_texts("time", "model"),
        sa.Column("label", sa.String(16), nullable=False),
        *_texts("kind"),
        sa.Column("region", sa.JSON),
        sa.Column("comment", sa.Text, nullable=False),
        *_texts("reviewer", "image"),
    )
    op.create_index("reviews_by_verdict", "reviews", ["verdict_id", "id"])
    op.create_index("reviews_by_model", "reviews", ["model", "id"])
    _create_small_tables()


def _create_small_tables() -> None:
    op.create_table(
        "served",
        _identifier(),
        *_texts("name"),
        sa.Column("version", sa.Integer, nullable=False),
        *_texts("given", "model"),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("threshold", sa.Float),
        *_texts("since", "changed_by"),
    )
    op.create_index("served_by_name", "served", ["name", "id"])
    op.create_table(
        "keys",
        _identifier(),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        *_texts("created", "revoked"),
    )
    op.create_table(
        "audit",
        _identifier(),
        *_texts("time", "who", "action", "target"),
        sa.Column("details", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables."""
    for table in ("audit", "keys", "served", "reviews", "verdicts"):
        op.drop_table(table)
