"""How fast a routed network embeds: ``python -m retrieval_bench.experiments.routing_speed``, on an idle machine.

Three ways in one process, in turn, so that a slower moment of the machine meets all of them: the policy network and the plain backbone
(what routing costs at least), each image through its own branches, and both branches for every image (as SpotTune's public code does).
Decisions are drawn at random here, so that every block has images on both sides; untrained weights cost the same as trained ones.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from retrieval_bench.config import ModelConfig
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.strategies.spottune import SpotTune


@dataclass(frozen=True)
class Timing:
    """Seconds of one way for one batch: median, fastest, slowest.

    `difference` is the largest one of a vector to that of both branches, relative to its length.
    """

    name: str
    median: float
    low: float
    high: float
    difference: float | None = None


def measure_routing(name: str, image_size: int, batch_size: int, share: float, rounds: int, device: str) -> list[Timing]:
    """Timings of the three ways, in the order above.

    Args:
        name: of a backbone, untrained.
        image_size: side of the input, pixels.
        batch_size: images.
        share: probability of the tuned block, for each image and block.
        rounds: timed passes of each way, after two that warm up.
        device: cpu or cuda.
    """
    torch.manual_seed(0)
    plain = build_embedder(ModelConfig(backbone=name, weights="none"), image_size).to(device).eval()
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    routed = SpotTune().prepare(copy.deepcopy(plain), images[:2]).eval()
    backbone = routed.backbone
    assert isinstance(backbone, RoutedBackbone)
    _set_decisions(backbone, share)
    policy = backbone.router

    def plainly() -> torch.Tensor:
        policy(images)
        return plain(images)

    def both() -> torch.Tensor:
        backbone.both_branches = True
        try:
            return routed(images)
        finally:
            backbone.both_branches = False

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain backbone, and policy": plainly,
        "each image its own branches": lambda: routed(images),
        "both branches for all": both,
    }
    seconds, vectors = _timed(ways, rounds, device)
    slow, fast = vectors["both branches for all"], vectors["each image its own branches"]
    difference = float(((slow - fast).norm(dim=1) / slow.norm(dim=1)).max())
    return [
        Timing(way, statistics.median(taken), min(taken), max(taken), difference if way == "each image its own branches" else None)
        for way, taken in seconds.items()
    ]


def _set_decisions(backbone: RoutedBackbone, share: float) -> None:
    """Makes the policy, which is computed as ever, decide at random, and moves the copies, so that decisions matter."""
    drawn = torch.Generator().manual_seed(1)

    def decide(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        drawn.manual_seed(1)
        return (torch.rand(output.shape, generator=drawn) < share).to(output)

    backbone.router.register_forward_hook(decide)
    with torch.no_grad():
        for block in backbone.routed:
            for parameter in block.tuned.parameters():
                parameter += 0.02 * torch.randn_like(parameter)  # zero-initialised norms too


@torch.inference_mode()
def _timed(ways: dict[str, Callable[[], torch.Tensor]], rounds: int, device: str) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each way per round, and what it gave."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, torch.Tensor] = {}
    for number in range(rounds + 2):
        for name, way in ways.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            vectors[name] = way()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds, vectors


def report(timings: list[Timing]) -> str:
    """The timings as a table, with their ratio to the first."""
    lines = [f"{'':32}{'seconds':>9}{'(fastest, slowest)':>20}{'ratio':>8}"]
    for timing in timings:
        spread = f"({timing.low:.3f}, {timing.high:.3f})"
        lines.append(f"{timing.name:32}{timing.median:>9.3f}{spread:>20}{timing.median / timings[0].median:>8.2f}")
    differences = [timing.difference for timing in timings if timing.difference is not None]
    return "\n".join([*lines, f"largest difference of a vector between the last two: {max(differences):.1e} of its length"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.5, help="probability of the tuned block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    if min(given.rounds, given.batch_size - 1) < 1:
        parser.error("--rounds must be at least 1, --batch-size at least 2")
    try:
        device = resolve_device(given.device)
        timings = measure_routing(given.backbone, given.image_size, given.batch_size, given.share, given.rounds, device)
    except UserError as error:
        parser.error(str(error))
    print(f"{given.backbone}, {given.image_size} px, batches of {given.batch_size}, {device}, {torch.get_num_threads()} threads")
    print(report(timings))


if __name__ == "__main__":
    main()
