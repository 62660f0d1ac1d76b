"""Where to compute."""

from __future__ import annotations

from retrieval_bench.errors import UserError


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``; raises :class:`UserError` for another name, or if a GPU is asked for and there is none."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
