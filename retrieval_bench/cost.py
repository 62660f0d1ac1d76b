"""What a run costs: parameters, multiply-accumulates, latency, and peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image's forward pass in eval mode (half of torch's FLOPs): convolutions and matrix
    products.

    ResNet-50 at 224 pixels: 4,087,136,256.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    model.eval()
    # without gradients, which the counter would look for where a parameter is a module's input (a class token); as
    # plain products, since some releases of torch do not count their fused attention on the CPU
    detached = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        functional_call(model, detached, image)
    return counter.get_total_flops() // 2


def latency_ms(model: nn.Module, image_size: int, passes: int = 30) -> float:
    """Milliseconds to embed one image in eval mode and channels-last layout, on the model's device: the fastest of
    `passes` after five more, since whatever else the machine does only adds to it.

    A black image: a routed network takes that image's route.
    """
    device = next(model.parameters()).device
    model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
    taken = []
    with torch.inference_mode():
        for _ in range(passes + 5):
            start = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return 1000 * min(taken[5:])


def reset_peak_memory(device: str) -> None:
    """Starts :func:`peak_memory_mb` afresh; where the system cannot (only Linux can), the peak is that of the whole
    process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: str) -> float:
    """Peak memory since :func:`reset_peak_memory` in MiB: of this process with all it holds (CPU), or of torch's
    allocator (GPU)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
