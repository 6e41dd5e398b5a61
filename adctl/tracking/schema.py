"""Tables of the run database."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

VERSION = "0001"
"""Newest migration; see `adctl/tracking/migrations`."""

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
