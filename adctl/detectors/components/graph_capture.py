"""Whether a graph is being captured, for an exported file or a compiled model.

What suits one is not what suits eager computation. Knows PyTorch alone.
"""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether what is computed now becomes a graph, which takes batches of any size whole and plans its own memory."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling()
