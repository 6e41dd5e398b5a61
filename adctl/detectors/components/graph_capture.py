"""Detection of graph capture, for exported files and compiled models.

A captured graph needs other code than eager execution. This module knows PyTorch only.
"""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Return whether the current code is being captured as a graph.

    A graph takes whole batches of any size and plans its own memory, so code must not cut batches into parts.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling()
