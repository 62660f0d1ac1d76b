"""Where to compute."""

from __future__ import annotations

import os

from retrieval_bench.errors import UserError


def resolve_device(device: str, deterministic: bool = False) -> str:
    """``cpu`` or ``cuda`` for ``auto``; raises :class:`UserError` for another name, or if a GPU is asked for and there is none.

    With `deterministic`, torch is told for the whole process to use operations that give the same bits each time, where it has them.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
