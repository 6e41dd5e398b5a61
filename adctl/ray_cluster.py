"""Connection to a Ray cluster. Ray is imported only here, and only when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adctl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

AUTO = "auto"

_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray sends no statistics, and hides no GPU from tasks that ask for none."""


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`.

    A process that is connected already keeps its connection.

    Args:
        address: Address of the head node, or `auto`: the cluster of this machine, or a new one of this machine alone.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: No cluster answers, or it has another version of Ray or Python.
    """
    os.environ.update(_VARIABLES)
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != AUTO:
            raise UsageError(
                f"No Ray cluster answers at {address}.",
                "Start one with 'ray start --head', give its address, or --ray auto for this machine.",
            ) from error
        log.info("No Ray cluster runs on this machine; one is started for this call.")
        ray.init(address="local", include_dashboard=False, **quiet)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"The Ray cluster at {address} cannot be used: {error}",
            f"Install the same versions of Ray, Python and adctl on all nodes; here Ray is {ray.__version__}.",
        ) from error
