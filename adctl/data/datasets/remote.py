"""Local mirrors of remote folders (`s3://bucket/parts`, `gs://`, `https://` and others that fsspec supports).

A remote folder is copied into adctl's data folder before it is read, because training reads images many times, and
scoring must not depend on the network. Later only changed files are copied again. Only files that adctl can read are
copied; files deleted on the remote side are deleted in the mirror. Nothing is written to the remote side. fsspec finds
the credentials (environment, profiles).
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from adctl import documents, files, reading
from adctl.data.containers import is_container_name
from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import FetchError, MissingExtraError, OutputError, UsageError
from adctl.paths import data_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

_INDEX = "index.json"
_FOLDER = "files"
_MAX_DOWNLOADS = 8
# `Path` turns the two slashes into one; a single letter before the colon is a Windows drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]{1,2}(?=[^/\\])")
_STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
_TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".json", ".cls", ".parquet"})


def is_remote(path: str | Path) -> bool:
    """Return True if a path is an address with a scheme, such as `s3://bucket/parts`."""
    return _ADDRESS.match(str(path)) is not None


def absolute_path(path: Path) -> str:
    """Return the absolute path, or the address of a remote folder, as text."""
    return _address(path) if is_remote(path) else str(path.absolute())


def local_copy(path: Path) -> Path:
    """Return a local path unchanged; update the mirror of a remote path and return the mirror's path.

    Raises:
        UsageError: There is nothing at the address, or its scheme is unknown.
        FetchError: The address cannot be reached or read.
        MissingExtraError: The package for the scheme is not installed.
        OutputError: The mirror cannot be written.
    """
    return _mirror(_address(path)) if is_remote(path) else path


def _address(path: Path) -> str:
    return _ADDRESS.sub(r"\1://", str(path).replace("\\", "/"), count=1).rstrip("/")


def _mirror(address: str) -> Path:
    """Update the mirror of an address, and return its folder or file."""
    remote_files, root, filesystem = _listing(address)
    base = files.make_folder(data_dir() / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16])
    target = base / _FOLDER / PurePosixPath(root).name
    with FileLock(base / ".lock"):
        known = _read_index(base)
        wanted = {name: _stamp(entry) for name, entry in remote_files.items()}
        stale = [name for name, stamp in wanted.items() if known.get(name) != stamp or not (target / name).is_file()]
        for name in set(known) - set(wanted):
            (target / name).unlink(missing_ok=True)
        # Files being copied are not in the index, so that an interrupted copy is repeated.
        files.write_json(base / _INDEX, {name: stamp for name, stamp in wanted.items() if name not in stale})
        if stale:
            log.info("Copying %d of %d files from %s.", len(stale), len(wanted), address)
            _copy(filesystem, address, [(remote_files[name], target / name) for name in stale])
        files.write_json(base / _INDEX, wanted)
    return target


def _listing(address: str) -> tuple[dict[str, Any], str, Any]:
    """Return the readable files below an address by relative name, the remote root, and the file system."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "remote") from error
    try:
        filesystem, root = fsspec.url_to_fs(address)
        filesystem.invalidate_cache()
        entries = filesystem.find(root, detail=True)
    except ImportError as error:
        raise MissingExtraError(_package_of(address), "remote") from error
    except ValueError as error:
        raise UsageError(f"Cannot open {address}: {error}.", "Use an address such as s3://bucket/folder.") from error
    except Exception as error:  # every file system has exceptions of its own
        raise _unreachable(address, error) from error
    root = root.rstrip("/")
    readable = {_relative(path, root): entry for path, entry in entries.items() if _is_readable(path)}
    safe = {name: entry for name, entry in readable.items() if ".." not in PurePosixPath(name).parts}
    if not safe:
        raise UsageError(f"No readable files were found at {address}.", "Check the address and its list permission.")
    return safe, root, filesystem


def _relative(path: str, root: str) -> str:
    return path[len(root) :].strip("/") if path != root else ""


def _is_readable(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in IMAGE_SUFFIXES | _TEXT_SUFFIXES or is_container_name(name.name)


def _stamp(entry: Mapping[str, Any]) -> str:
    """Return a text that changes when the file changes: its size, and its version tags or times."""
    return " ".join(str(entry[key]) for key in ("size", *_STAMPS) if entry.get(key) is not None)


def _copy(filesystem: Any, address: str, wanted: Sequence[tuple[Mapping[str, Any], Path]]) -> None:
    with ThreadPoolExecutor(_MAX_DOWNLOADS) as pool:
        jobs = [pool.submit(_copy_one, filesystem, entry, target) for entry, target in wanted]
        try:
            for job in jobs:
                job.result()
        except OutputError:
            raise
        except Exception as error:  # every file system has exceptions of its own
            raise _unreachable(address, error) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _copy_one(filesystem: Any, entry: Mapping[str, Any], target: Path) -> None:
    with files.atomic_path(target, flush=False) as temporary:
        filesystem.get_file(entry["name"], str(temporary))
        size = temporary.stat().st_size
        if entry.get("size") not in (None, size):
            raise EOFError(f"{entry['name']} has {entry['size']} bytes, but {size} were received")


def _read_index(base: Path) -> dict[str, str]:
    """Read the file names and stamps of the last update; if the index is missing or damaged, delete the mirror."""
    try:
        table = documents.parse(reading.read_bytes(base / _INDEX), dict[str, str])
    except (OSError, ValueError):
        shutil.rmtree(base / _FOLDER, ignore_errors=True)
        return {}
    return table


def _package_of(address: str) -> str:
    scheme = address.partition(":")[0]
    return {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}.get(
        scheme, f"fsspec's for {scheme}"
    )


def _unreachable(address: str, error: Exception) -> UsageError | FetchError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"There is nothing at {address}.", "Check the address.")
    reason = str(error) or type(error).__name__
    return FetchError(
        f"Cannot read {address}: {reason}.",
        "Check the network and the credentials (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).",
    )
