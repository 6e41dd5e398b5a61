"""Plan of a cluster that scores images: arithmetic for a number of images a day, and a simulation of an hour.

    python examples/cluster/plan.py [NAME=VALUE ...]         such as images=1e8 core_ms=8 kilobytes=200

The measured numbers are the processor time of an image and of a row in the command, and the memory of a row. The limits
and prices of the object store and of machines are assumptions, printed with the result; give your own. The simulation
draws the parts of `adctl score --ray` through nodes that end, an object store with a limit of requests, and the one
process of the command.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, fields, replace

import numpy as np

DAY = 86_400
PART = 256


@dataclass(frozen=True)
class Plan:
    """Numbers of a plan.

    Attributes:
        images: Images a day.
        peak: Highest rate as a multiple of the mean.
        core_ms: Processor time of one image on a node, milliseconds.
        command_ms: Processor time of one image in the command, milliseconds.
        row_bytes: Memory of one image in the command until the end.
        used: Share of a node's time that is used, with restarts and uneven parts.
        cores: Cores of a node.
        kilobytes: Size of an image file.
        gigabits: Network of a node.
        gets: Requests a second that one prefix of the object store answers.
        prefixes: Prefixes over which the images are spread.
        memory: Memory for the command, gigabytes.
        calls: Calls of `adctl score` a day, each of which ends before its share of the day is over.
        node_hours: Mean time to the end of a node, hours.
        minutes: Time until a node is replaced.
        core_price: Price of a core for an hour, dollars.
        get_price: Price of a million reading requests, dollars.
        month_price: Price of a gigabyte for a month, dollars.
        kept: Days that images are kept.
        seed: Seed of the simulation.
    """

    images: float = 1e9
    peak: float = 1.5
    core_ms: float = 13.0
    command_ms: float = 0.02
    row_bytes: float = 1250.0
    used: float = 0.8
    cores: int = 32
    kilobytes: float = 200.0
    gigabits: float = 10.0
    gets: float = 5500.0
    prefixes: int = 8
    memory: float = 64.0
    calls: int = 96
    node_hours: float = 500.0
    minutes: float = 5.0
    core_price: float = 0.04
    get_price: float = 0.40
    month_price: float = 0.023
    kept: float = 7.0
    seed: int = 0

    @property
    def rate(self) -> float:
        """Images a second at the peak."""
        return self.images * self.peak / DAY

    @property
    def nodes(self) -> int:
        """Nodes for the peak."""
        return int(np.ceil(self.rate * self.core_ms / 1000 / self.used / self.cores))


def loads(plan: Plan) -> dict[str, float]:
    """Return how much of each resource the peak uses; above 1 it breaks."""
    return {
        "requests of one prefix": plan.rate / plan.gets / plan.prefixes,
        "network of a node": plan.rate / plan.nodes * plan.kilobytes * 8e3 / (plan.gigabits * 1e9),
        "process of the command": plan.rate * plan.command_ms / 1000,
        "memory of the command": plan.images / plan.calls * plan.row_bytes / (plan.memory * 1e9),
        "cores": plan.rate * plan.core_ms / 1000 / (plan.nodes * plan.cores),
    }


def costs(plan: Plan) -> dict[str, float]:
    """Return dollars a day: nodes for the peak all day, reading, and the images that are kept."""
    return {
        "cores": plan.nodes * plan.cores * 24 * plan.core_price,
        "reading requests": plan.images / 1e6 * plan.get_price,
        "images kept": plan.images * plan.kilobytes / 1e6 * plan.kept * plan.month_price / 30,
    }


def simulate(plan: Plan, seconds: float = 3600.0) -> dict[str, float]:
    """Simulate the peak: images arrive evenly, and a node works on one part at a time with all of its cores.

    A part waits for a node, reads through the limit of the store, computes, and is received by the command. The part of
    a node that ends is done again, at the front of the queue.

    Returns:
        Parts done and repeated, ends of nodes, delay of a part in seconds, and busy shares.
    """
    random = np.random.default_rng(plan.seed)
    requests = PART / (plan.gets * plan.prefixes)
    transfer = PART * plan.kilobytes * 8e3 / (plan.gigabits * 1e9)
    computing, receiving = PART * plan.core_ms / 1000 / plan.cores, PART * plan.command_ms / 1000
    between = PART / plan.rate
    free = [(0.0, node) for node in range(plan.nodes)]
    ends = random.exponential(plan.node_hours * 3600, plan.nodes)
    store = command = busy = 0.0
    delays: list[float] = []
    repeated = lost = 0
    arrival = 0.0
    while arrival < seconds:
        arrival += between
        while True:
            idle, node = heapq.heappop(free)
            start = max(idle, arrival)
            store = max(store, start) + requests
            done = max(store, start + max(transfer, computing))  # images are read while others are computed
            if done < ends[node]:
                break
            lost, repeated = lost + 1, repeated + (ends[node] > start)
            back = max(ends[node], start) + plan.minutes * 60
            ends[node] = back + random.exponential(plan.node_hours * 3600)
            heapq.heappush(free, (back, node))
        heapq.heappush(free, (done, node))
        busy += computing
        command = max(command, done) + receiving
        delays.append(command - arrival)
    return {
        "parts": len(delays),
        "parts repeated": repeated,
        "ends of nodes": lost,
        "median delay, s": float(np.median(delays)),
        "delay of the last parts, s": float(np.mean(delays[-100:])),
        "nodes busy": busy / seconds / plan.nodes,
        "store busy": len(delays) * requests / seconds,
        "command busy": len(delays) * receiving / seconds,
    }


def describe(plan: Plan) -> str:
    """Return the plan as Markdown."""
    lines = ["| assumption | value |", "|---|---|"]
    lines += [f"| {one.name} | {getattr(plan, one.name):g} |" for one in fields(plan)]
    traffic = plan.rate * plan.kilobytes * 8e3 / 1e9
    nodes = f"{plan.nodes} nodes of {plan.cores} cores, {traffic:.1f} Gbit/s, {plan.rate / PART:.0f} parts/s written."
    lines += ["", f"{plan.rate:,.0f} images/s at the peak: {nodes}", ""]
    lines += ["| resource | used at the peak | breaks at images a day |", "|---|---|---|"]
    for name, load in sorted(loads(plan).items(), key=lambda one: -one[1]):
        lines.append(f"| {name} | {load:.0%} | {'more nodes' if name == 'cores' else f'{plan.images / load:.2g}'} |")
    lines += ["", "| dollars a day | |", "|---|---|"]
    lines += [f"| {name} | {value:,.0f} |" for name, value in costs(plan).items()]
    lines += ["", "| simulated | as planned | one prefix | two thirds of the nodes |", "|---|---|---|---|"]
    changed = replace(plan, prefixes=1), replace(plan, used=1.5 * plan.used)
    columns = [simulate(one) for one in (plan, *changed)]
    lines += [f"| {name} | {' | '.join(f'{column[name]:,.3g}' for column in columns)} |" for name in columns[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    kinds = {one.name: type(one.default) for one in fields(Plan)}
    given = dict(text.split("=", 1) for text in sys.argv[1:])
    print(describe(Plan(**{name: kinds[name](float(value)) for name, value in given.items()})))
