"""How fast networks embed: ``python -m benchmarks.inference_speed routing`` or ``pruning``, on an idle machine.

Ways are timed in one process, in turn; ratios are to the first. Weights are untrained, which costs the same.

``routing``: the policy network and the plain backbone (what routing costs at least), each image through its own
branches, and both branches for all (as SpotTune's public code does), by decisions drawn at random.
``pruning``: the whole backbone, and what uniform and global channel pruning leave of it at several budgets, with any
widths and with multiples of 16 (which vector units take at once); each as deployed, norms folded into convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
import tyro

from benchmarks.timing import command_line, report, timed
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.models.budget import choose_channels
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.folding import foldable, folded
from retrieval_bench.models.pruning import find_channels, remove_channels
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.channel_pruning import channel_scores
from retrieval_bench.strategies.spottune import SpotTune


def routing_ways(plain: Embedder, images: torch.Tensor, share: float = 0.5) -> dict[str, Callable[[], torch.Tensor]]:
    """The three ways of ``routing`` to embed `images`; `share` is the probability of a tuned block."""
    routed = SpotTune().prepare(copy.deepcopy(plain), images[:2]).eval()
    backbone: Any = routed.backbone

    def decide(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return (torch.rand(output.shape, generator=torch.Generator().manual_seed(1)) < share).to(output)

    backbone.router.register_forward_hook(decide)  # the policy is computed as usual
    with torch.no_grad():
        for parameter in (each for block in backbone.routed.values() for each in block.tuned.parameters()):
            parameter += 0.02 * torch.randn_like(parameter)  # so that decisions matter

    def plain_with_policy() -> torch.Tensor:
        backbone.router(images)
        return plain(images)

    def embed(both: bool) -> torch.Tensor:
        backbone.both_branches = both
        return routed(images)

    return {
        "plain backbone, and policy": plain_with_policy,
        "each image its own branches": lambda: embed(False),
        "both branches for all": lambda: embed(True),
    }


def pruning_ways(
    plain: Embedder, images: torch.Tensor, folds: ExitStack, budgets: tuple[float, ...] = (0.7, 0.5, 0.3)
) -> dict[str, Callable[[], torch.Tensor]]:
    """The ways of ``pruning`` to embed `images`, until `folds` is closed; names say what share of the
    multiply-accumulates is left."""
    side, networks = images.shape[-1], {"whole backbone": copy.deepcopy(plain)}
    channels = find_channels(plain.backbone, side)
    for budget in budgets:
        for criterion, multiple in (("uniform", 1), ("uniform", 16), ("magnitude", 16)):
            scores = channel_scores(plain.backbone, channels, criterion)
            chosen, pruned = choose_channels(channels, scores, budget, multiple=multiple), copy.deepcopy(plain)
            remove_channels(pruned.backbone, chosen.keep, side)
            networks[f"{criterion}{', by 16' if multiple > 1 else ''}, {chosen.reached:.3f} of the MACs"] = pruned
    layout = torch.contiguous_format if next(plain.parameters()).is_contiguous() else torch.channels_last
    for network in networks.values():
        network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        folds.enter_context(folded(foldable(network.backbone, side)))
    return {name: lambda network=network: network(images) for name, network in networks.items()}


def main(
    what: tyro.conf.Positional[Literal["routing", "pruning"]],
    backbone: str = "resnet50",
    image_size: int = 128,
    batch_size: int = 32,
    rounds: int = 9,
    layout: Literal["channels_last", "contiguous"] = "channels_last",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Times routed or pruned networks; with channels_last the channels of a pixel lie side by side."""
    torch.manual_seed(0)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be at least 1")
    where = resolve_device(device)
    plain = build_embedder(ModelConfig(backbone=backbone, weights="none"), image_size).to(where).eval()
    if layout == "channels_last":
        plain = plain.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=where)
    print(f"{backbone}, {image_size} px, batches of {batch_size}, {layout}")
    with torch.inference_mode(), ExitStack() as folds:
        ways = routing_ways(plain, images) if what == "routing" else pruning_ways(plain, images, folds)
        print(report(timed(ways, rounds, where), where))


if __name__ == "__main__":
    command_line(main)
