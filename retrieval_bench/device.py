"""Where runs are computed: the device, and what a record says of the machine and its software."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import retrieval_bench
from retrieval_bench.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", "pytorch-metric-learning", "faiss-cpu", "numpy")


def resolve_device(device: str, deterministic: bool = False) -> str:
    """``cpu`` or ``cuda`` for ``auto``; raises :class:`UserError` for another name, or if a GPU is asked for and there
    is none.

    With `deterministic`, torch uses operations that give the same bits each time, where
    it has them.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def has_bfloat16(device: str) -> bool:
    """Whether the GPU (``cuda``) or the processor (``cpu``, by AMX or AVX-512) has instructions for bfloat16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever the process has set for training."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses torch's newer setting, which forbids to ask for the older one
        matmul = torch.backends.cuda.matmul
        before_newer, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before_newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def environment(device: str) -> dict[str, Any]:
    """Device, threads, versions and git revision of this process."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {
        "device": f"{device}: {name}",
        "threads": torch.get_num_threads(),
        "git_revision": git_revision(),
        "versions": {"retrieval_bench": retrieval_bench.__version__, "python": platform.python_version(), **versions},
    }


@cache
def git_revision() -> str | None:
    """Commit of the checkout that the package runs from, with ``+changes`` if files differ from it; None outside of
    one.

    Read once per process, when its first run starts, since that is the code that was loaded.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
