"""Keys of the server: made once, shown once, stored as digests, and revocable.

A key is `adctl_ID_SECRET` with 256 random bits, so that a plain SHA-256 protects it; there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from adctl import run_folder
from adctl.errors import AdctlError, UsageError
from adctl.tracking import database
from adctl.tracking.schema import KEYS

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import RowMapping

Role = Literal["score", "review", "admin"]

ROLES: tuple[Role, ...] = ("score", "review", "admin")
"""Roles; each may do what those before it may."""

_PREFIX = "adctl"
_NO_DIGEST = hashlib.sha256(b"").hexdigest()
_PARTS = 3


@dataclass(frozen=True)
class Key:
    """One key, without its secret.

    Attributes:
        id: Identifier, which is part of the key.
        name: Name of the machine or person.
        role: Role.
        created: Time when it was made, ISO 8601.
        revoked: Time when it was revoked; empty for a valid key.
    """

    id: str
    name: str
    role: Role
    created: str
    revoked: str = ""


@dataclass(frozen=True)
class NewKey:
    """A key that was just made.

    Attributes:
        name: Name of the machine or person.
        role: Role.
        key: The key, which is not stored.
    """

    name: str
    role: Role
    key: str


def add_key(runs: Path, name: str | None, role: Role) -> NewKey:
    """Make a key.

    Raises:
        UsageError: No name was given, or a key has it already.
        AdctlError: The database cannot be written.
    """
    if not name or not name.isprintable():
        raise UsageError("No name was given.", "Name the machine or person: adctl serve keys add camera1")
    identifier, secret = run_folder.new_id(), secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    row = {"id": identifier, "name": name, "role": role, "sha256": digest, "created": run_folder.timestamp()}
    try:
        with database.durable_transaction(runs) as connection:
            if connection.execute(select(KEYS.c.id).where(KEYS.c.name == name)).first():
                raise UsageError(f"There is a key '{name}' already.", "Choose another name; names stay in the history.")
            connection.execute(insert(KEYS), {**row, "revoked": ""})
    except IntegrityError as error:
        raise UsageError(f"There is a key '{name}' already.", "Choose another name.") from error
    return NewKey(name, role, f"{_PREFIX}_{identifier}_{secret}")


def list_keys(runs: Path) -> list[Key]:
    """Return all keys, the oldest first; raises an `AdctlError` if the database cannot be read."""
    with database.durable_transaction(runs, reads=True) as connection:
        return [_key_of(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.id)).mappings()]


def revoke_key(runs: Path, name: str | None) -> Key:
    """Revoke a key.

    Raises:
        UsageError: There is no such key.
        AdctlError: The database cannot be written.
    """
    known = {key.name: key for key in list_keys(runs)}
    key = known.get(name or "")
    if key is None:
        raise UsageError(f"There is no key '{name or ''}'.", f"Known: {', '.join(known) or 'none'}.")
    revoked = key.revoked or run_folder.timestamp()
    with database.durable_transaction(runs) as connection:
        connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(revoked=revoked))
    return Key(key.id, key.name, key.role, key.created, revoked)


def _key_of(row: RowMapping) -> Key:
    return Key(**{column.name: row[column] for column in KEYS.c if column is not KEYS.c.sha256})


class Keys:
    """Checks keys against those of the database, as `refresh` read them last.

    Args:
        runs: Folder of runs, with the database.

    Raises:
        AdctlError: The database cannot be read.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._digests: dict[str, tuple[Key, str]] = {}
        self._read()

    def check(self, given: str) -> Key | None:
        """Return the valid key that a text is; None for any other text."""
        prefix, identifier, secret = [*given.split("_", _PARTS - 1), "", ""][:_PARTS]
        key, digest = self._digests.get(identifier, (None, _NO_DIGEST))
        same = hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), digest)
        return key if same and prefix == _PREFIX else None

    def get(self, identifier: str) -> Key | None:
        """Return a valid key by its identifier."""
        return self._digests.get(identifier, (None, ""))[0]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def refresh(self) -> None:
        """Read the keys again, so that revoked ones end; while the database is away, those read last count."""
        with suppress(AdctlError):
            self._read()

    def _read(self) -> None:
        with database.durable_transaction(self._runs, reads=True) as connection:
            rows = connection.execute(select(KEYS).where(KEYS.c.revoked == "")).mappings().all()
        self._digests = {row["id"]: (_key_of(row), row["sha256"]) for row in rows}
