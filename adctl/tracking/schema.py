"""Tables of the run database."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

VERSIONS = Table("adctl_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Table of the version, which Alembic fills. Optuna keeps tables of its own in the same database."""

METADATA = MetaData()

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("name", String, nullable=False),
    Column("folder", String, nullable=False, unique=True),
    Column("state", String, nullable=False),
    Column("started", String, nullable=False),
    Column("finished", String, nullable=False),
    Column("arch", String, nullable=False),
    Column("dataset", String, nullable=False),
    Column("category", String, nullable=False),
    Column("seed", Integer),
    Column("images", Integer),
    Column("seconds", Float),
    Column("model", String, nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("images_sha256", String(64), nullable=False),
    Column("version", String, nullable=False),
    Column("machine", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Index("runs_by_name", "name"),
    Index("runs_by_arch_and_category", "arch", "category"),
)

ARTIFACTS = Table(
    "artifacts",
    METADATA,
    Column("run", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(26), primary_key=True),
    Column("kind", String, nullable=False),
    Column("path", String, nullable=False),
    Column("time", String, nullable=False),
    Column("source", String, nullable=False),
    Column("sha256", String(64)),
    Column("metrics", JSON, nullable=False),
    Column("intervals", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
)

VERDICTS = Table(
    "verdicts",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("time", String, nullable=False),
    Column("request", String(26), nullable=False),
    Column("model", String, nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("calibration_sha256", String(64), nullable=False),
    Column("name", String, nullable=False),
    Column("lot", String, nullable=False),
    Column("part", String, nullable=False),
    Column("client", String, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("score", Float),
    Column("p_value", Float),
    Column("probability", Float),
    Column("threshold", Float),
    Column("pixel_threshold", Float),
    Column("width", Integer),
    Column("height", Integer),
    Column("boxes", JSON, nullable=False),
    Column("error", Text, nullable=False),
    Column("milliseconds", Float, nullable=False),
    Column("image", String, nullable=False),
    Column("has_map", Boolean, nullable=False),
    Index("verdicts_by_model", "model", "id"),
    Index("verdicts_by_verdict", "verdict", "id"),
    Index("verdicts_by_lot", "lot", "id"),
)
"""Verdicts of `adctl serve`. Identifiers increase even if the clock is set back, so that they give the order.

`name`, `lot`, `part` and `error` are empty if there is none; `image` is the suffix of the stored image, or empty.
"""

REVIEWS = Table(
    "reviews",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("verdict_id", String(26), nullable=False),
    Column("time", String, nullable=False),
    Column("model", String, nullable=False),
    Column("label", String(16), nullable=False),
    Column("kind", String, nullable=False),
    Column("region", JSON),
    Column("comment", Text, nullable=False),
    Column("reviewer", String, nullable=False),
    Column("image", String, nullable=False),
    Index("reviews_by_verdict", "verdict_id", "id"),
    Index("reviews_by_model", "model", "id"),
)
"""Labels that persons gave; the newest of a verdict counts. They stay when retention removes the verdict.

`image` is the path of the copied image in the data folder of the server, or empty.
"""

SERVED = Table(
    "served",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("given", String, nullable=False),
    Column("model", String, nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("threshold", Float),
    Column("since", String, nullable=False),
    Column("changed_by", String, nullable=False),
    Index("served_by_name", "name", "id"),
)
"""Model version and threshold of each served name, one row for each change; the newest row of a name is in use.

`given` is the model that the command line named; `threshold` replaces that of the calibration unless it is null.
"""

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created", String, nullable=False),
    Column("revoked", String, nullable=False),
)
"""Keys of the server: the digest of each, never the key; `revoked` is empty for a valid one."""

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", String(26), primary_key=True),
    Column("time", String, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("target", String, nullable=False),
    Column("details", JSON, nullable=False),
)
"""Changes on the server, each with its author."""

SPOOL = Table(
    "spool",
    METADATA,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("sink", String, nullable=False),
    Column("verdict_id", String(26), nullable=False),
    Column("body", JSON, nullable=False),
    UniqueConstraint("sink", "verdict_id", name="spool_by_verdict"),
    Index("spool_by_sink", "sink", "number"),
)
"""Verdicts that wait for a sink; the numbers give the order. See `adctl.sinks.spool`."""
