"""Ray cluster: the connection, worker processes on its nodes, and tasks for them.

Ray is imported only here, and only when it is asked for. A process that ends with a task in work, alone or with its
node, is replaced; its task is handed back as `Lost`, and the caller repeats it or gives it up.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from adctl import __version__
from adctl.errors import AdctlError, DataError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableSequence, Sequence

T = TypeVar("T")

log = logging.getLogger(__name__)

AUTO = "auto"

_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray sends no statistics, and hides no GPU from tasks that ask for none."""

_POLL = 1.0
_PATIENCE = 60.0
"""Seconds that a cluster without nodes is waited for."""


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


@dataclass(frozen=True)
class Caller:
    """Process of the command.

    Attributes:
        version: Version of adctl.
        variables: Environment variables of adctl.
        folder: Working folder, to which relative paths refer.
        number: Number of the worker among those of the command, from 1.
    """

    version: str
    variables: dict[str, str]
    folder: str
    number: int

    @classmethod
    def here(cls, number: int) -> Caller:
        """Return the description of this process for a worker."""
        variables = {name: value for name, value in os.environ.items() if name.startswith("ADCTL_")}
        return cls(__version__, variables, str(Path.cwd()), number)


class Worker:
    """Process on a node; subclasses have the methods that work.

    Args:
        caller: Process of the command; its environment is taken over, and its working folder if the node has it.

    Raises:
        UsageError: This node has another version of adctl.
    """

    def __init__(self, caller: Caller) -> None:
        if caller.version != __version__:
            raise UsageError(
                f"A node of the Ray cluster has adctl {__version__}, and this machine has {caller.version}.",
                "Install the same version on all nodes.",
            )
        os.environ.update(caller.variables)
        with suppress(OSError):
            os.chdir(caller.folder)


def require_shared(folder: Path) -> None:
    """Check that this node has a folder of the machine of the command.

    Raises:
        UsageError: It has not.
    """
    if not folder.is_dir():
        raise UsageError(
            f"The node {socket.gethostname()} does not see the folder {folder}.",
            "Give a folder of a file system that all nodes share.",
        )


@dataclass(frozen=True)
class Lost:
    """Outcome of a task whose process ended.

    Attributes:
        node_alive: Whether the node is still there, so that the task itself is likely to be the cause.
    """

    node_alive: bool


class Pool(Generic[T]):
    """Workers on all nodes of a cluster, and the tasks that they are given.

    Args:
        ray: The module.
        worker: Class of the workers.
        arguments: Further arguments of its constructor.
        cpus: CPUs of one worker; None for those of the node, shared by its workers.
        gpu: GPUs of one worker, or a share of one; 0 for none.
    """

    def __init__(
        self, ray: Any, worker: type[Worker], arguments: Sequence[Any], *, cpus: int | None, gpu: float
    ) -> None:
        self._ray, self._cpus, self._gpu = ray, cpus, gpu
        self._remote = ray.remote(worker)
        self._arguments = arguments
        self._started = 0
        self._nodes: dict[Any, str] = {}
        """Node of each worker."""

    def run(
        self, waiting: MutableSequence[T], send: Callable[[Any, T], Any], pick: Callable[[Any], int] = lambda _: 0
    ) -> Iterator[tuple[T, Any]]:
        """Yield each task with its result, or with `Lost`, in the order in which they end.

        Args:
            waiting: Tasks; the caller may append, repeat and clear them meanwhile.
            send: Function that gives a task to a worker and returns the reference to its result.
            pick: Function that returns the place of the next task for a worker in `waiting`.

        Raises:
            AdctlError: A worker raised it, or cannot start.
            UsageError: All nodes are lost.
        """
        running: dict[Any, tuple[Any, T]] = {}
        last = time.monotonic()
        while waiting or running:
            self._start_missing()
            busy = [worker for worker, _ in running.values()]
            for worker in [one for one in self._nodes if one not in busy][: len(waiting)]:
                task = waiting.pop(pick(worker))
                running[send(worker, task)] = (worker, task)
            if not running:
                if time.monotonic() - last > _PATIENCE:
                    raise UsageError(
                        "The Ray cluster has lost all of its nodes.", "Start it; the same command continues."
                    )
                time.sleep(_POLL)
                continue
            last = time.monotonic()
            for reference in self._ray.wait(list(running), num_returns=1, timeout=_POLL)[0]:
                worker, task = running.pop(reference)
                yield task, self._result(reference, worker)

    def _result(self, reference: Any, worker: Any) -> Any:
        """Return the result of a task, or `Lost`; forget a worker that ended."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, AdctlError):
                raise error.cause from error
            raise
        except errors.RayError as error:
            _raise_if_not_started(error)
            node = self._nodes.pop(worker)
            return Lost(any(one["Alive"] for one in self._ray.nodes() if one["NodeID"] == node))

    def _start_missing(self) -> None:
        """Start the workers that nodes lack."""
        for node in self._ray.nodes():
            cpus, gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
            if not node["Alive"] or cpus <= 0:
                continue
            by_gpu = int(gpus / self._gpu) if self._gpu else 0
            wanted = by_gpu or max(1, int(cpus // (self._cpus or cpus)))
            own = min(self._cpus or max(1, cpus // wanted), cpus)
            for _ in range(wanted - list(self._nodes.values()).count(node["NodeID"])):
                near = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                gpu = self._gpu if by_gpu else 0.0
                options = {"num_cpus": own, "num_gpus": gpu, "scheduling_strategy": near, "max_restarts": 0}
                self._started += 1
                worker = self._remote.options(**options).remote(Caller.here(self._started), *self._arguments)
                self._nodes[worker] = node["NodeID"]


def _raise_if_not_started(error: Exception) -> None:
    """Raise the error of a worker that could not start."""
    cause: Any = getattr(error, "cause", None)
    if isinstance(cause, AdctlError):
        raise cause
    if "creation task" in str(error):
        raise DataError(
            f"A worker of the Ray cluster cannot start: {str(error).strip().splitlines()[-1]}",
            "Install the same versions of adctl and its packages on all nodes.",
        )
