"""Tables of the run database."""

from __future__ import annotations

from typing import Any

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
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy import Text as _Text

from adctl.names import storable


class Name(TypeDecorator[str]):
    """Text that may come from outside: what no database takes in it is escaped."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Return a text for the database."""
        del dialect
        return None if value is None else storable(value)


class Text(Name):
    """Long text that may come from outside."""

    impl = _Text
    cache_ok = True


VERSIONS = Table("adctl_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Table of the version, which Alembic fills. Optuna keeps tables of its own in the same database."""

METADATA = MetaData()

RUNS = Table(
    "runs",
    METADATA,
    Column("id", Name(26), primary_key=True),
    Column("name", Name, nullable=False),
    Column("folder", Name, nullable=False, unique=True),
    Column("state", Name, nullable=False),
    Column("started", Name, nullable=False),
    Column("finished", Name, nullable=False),
    Column("arch", Name, nullable=False),
    Column("dataset", Name, nullable=False),
    Column("category", Name, nullable=False),
    Column("seed", Integer),
    Column("images", Integer),
    Column("seconds", Float),
    Column("model", Name, nullable=False),
    Column("model_sha256", Name(64), nullable=False),
    Column("images_sha256", Name(64), nullable=False),
    Column("version", Name, nullable=False),
    Column("machine", Name, nullable=False),
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
    Column("run", Name(26), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Name(26), primary_key=True),
    Column("kind", Name, nullable=False),
    Column("path", Name, nullable=False),
    Column("time", Name, nullable=False),
    Column("source", Name, nullable=False),
    Column("sha256", Name(64)),
    Column("metrics", JSON, nullable=False),
    Column("intervals", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
)

VERDICTS = Table(
    "verdicts",
    METADATA,
    Column("id", Name(26), primary_key=True),
    Column("time", Name, nullable=False),
    Column("request", Name(26), nullable=False),
    Column("model", Name, nullable=False),
    Column("model_sha256", Name(64), nullable=False),
    Column("calibration_sha256", Name(64), nullable=False),
    Column("name", Name, nullable=False),
    Column("lot", Name, nullable=False),
    Column("part", Name, nullable=False),
    Column("client", Name, nullable=False),
    Column("verdict", Name(16), nullable=False),
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
    Column("image", Name, nullable=False),
    Column("has_map", Boolean, nullable=False),
    Column("kind", Name),
    Column("kind_probability", Float),
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
    Column("id", Name(26), primary_key=True),
    Column("verdict_id", Name(26), nullable=False),
    Column("time", Name, nullable=False),
    Column("model", Name, nullable=False),
    Column("label", Name(16), nullable=False),
    Column("kind", Name, nullable=False),
    Column("region", JSON),
    Column("comment", Text, nullable=False),
    Column("reviewer", Name, nullable=False),
    Column("image", Name, nullable=False),
    Index("reviews_by_verdict", "verdict_id", "id"),
    Index("reviews_by_model", "model", "id"),
)
"""Labels that persons gave; the newest of a verdict counts. They stay when retention removes the verdict.

`image` is the path of the copied image in the data folder of the server, or empty.
"""

SERVED = Table(
    "served",
    METADATA,
    Column("id", Name(26), primary_key=True),
    Column("name", Name, nullable=False),
    Column("version", Integer, nullable=False),
    Column("given", Name, nullable=False),
    Column("model", Name, nullable=False),
    Column("model_sha256", Name(64), nullable=False),
    Column("threshold", Float),
    Column("since", Name, nullable=False),
    Column("changed_by", Name, nullable=False),
    Index("served_by_name", "name", "id"),
)
"""Model version and threshold of each served name, one row for each change; the newest row of a name is in use.

`given` is the model that the command line named; `threshold` replaces that of the calibration unless it is null.
"""

KEYS = Table(
    "keys",
    METADATA,
    Column("id", Name(26), primary_key=True),
    Column("name", Name, nullable=False, unique=True),
    Column("role", Name(16), nullable=False),
    Column("sha256", Name(64), nullable=False),
    Column("created", Name, nullable=False),
    Column("revoked", Name, nullable=False),
)
"""Keys of the server: the digest of each, never the key; `revoked` is empty for a valid one."""

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", Name(26), primary_key=True),
    Column("time", Name, nullable=False),
    Column("who", Name, nullable=False),
    Column("action", Name, nullable=False),
    Column("target", Name, nullable=False),
    Column("details", JSON, nullable=False),
)
"""Changes on the server, each with its author."""

SPOOL = Table(
    "spool",
    METADATA,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("sink", Name, nullable=False),
    Column("verdict_id", Name(26), nullable=False),
    Column("body", JSON, nullable=False),
    UniqueConstraint("sink", "verdict_id", name="spool_by_verdict"),
    Index("spool_by_sink", "sink", "number"),
)
"""Verdicts that wait for a sink; the numbers give the order. See `adctl.sinks.spool`."""
