"""How fast networks embed: ``python -m retrieval_bench.experiments.inference_speed routing`` or ``pruning``, on an idle machine.

Ways are timed in one process, in turn, so that a slower moment of the machine meets all of them; ratios are to the first. Weights are
untrained, which costs the same.

``routing``: the policy network and the plain backbone (what routing costs at least), each image through its own branches, and both
branches for every image (as SpotTune's public code does). Decisions are drawn at random, so that every block has images on both sides.

``pruning``: the whole backbone, and what uniform and global channel pruning leave of it at several budgets, with any widths and with
multiples of 16 (the numbers of channels that vector units take at once); each as it is deployed, with norms folded into convolutions.

``--layout channels_last`` (the usual one) stores the channels of a pixel side by side, as fast convolutions want them; ``contiguous`` is
torch's default.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch

from retrieval_bench import cost
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.timing import report, timed
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.models.surgery import fold_norms
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.spottune import SpotTune


def routing_ways(plain: Embedder, images: torch.Tensor, share: float = 0.5) -> dict[str, Callable[[], Any]]:
    """The three ways of ``routing`` to embed `images`; `share` is the probability of a tuned block."""
    routed = SpotTune().prepare(copy.deepcopy(plain), images[:2]).eval()
    backbone = routed.backbone
    assert isinstance(backbone, RoutedBackbone)
    drawn = torch.Generator()

    def decide(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return (torch.rand(output.shape, generator=drawn.manual_seed(1)) < share).to(output)

    backbone.router.register_forward_hook(decide)  # the policy is computed as ever
    with torch.no_grad():
        for block in backbone.routed.values():
            for parameter in block.tuned.parameters():
                parameter += 0.02 * torch.randn_like(parameter)  # so that decisions matter

    def plainly() -> torch.Tensor:
        backbone.router(images)
        return plain(images)

    def embedded(both: bool) -> torch.Tensor:
        backbone.both_branches = both
        return routed(images)

    return {
        "plain backbone, and policy": plainly,
        "each image its own branches": lambda: embedded(False),
        "both branches for all": lambda: embedded(True),
    }


def pruning_ways(
    plain: Embedder, images: torch.Tensor, budgets: tuple[float, ...] = (0.7, 0.5, 0.3)
) -> dict[str, Callable[[], Any]]:
    """The ways of ``pruning`` to embed `images`; names say what share of the multiply-accumulates is left."""
    side = images.shape[-1]
    whole = cost.macs(plain, side)
    networks = {"whole backbone": copy.deepcopy(plain)}
    for budget in budgets:
        for scores, multiple in (("uniform", 1), ("uniform", 16), ("magnitude", 16)):
            strategy = ChannelPruning(ChannelPruning.Options(budget=budget, scores=scores, multiple=multiple))
            pruned = strategy.prepare(copy.deepcopy(plain), images[:2]).eval()
            networks[
                f"{scores}{', by 16' if multiple > 1 else ''}, {cost.macs(pruned, side) / whole:.3f} of the MACs"
            ] = pruned
    layout = torch.contiguous_format if next(plain.parameters()).is_contiguous() else torch.channels_last
    for network in networks.values():
        fold_norms(network.backbone, side)
        network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    return {name: lambda network=network: network(images) for name, network in networks.items()}


WAYS = {"routing": routing_ways, "pruning": pruning_ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layout", choices=("channels_last", "contiguous"), default="channels_last")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    if min(given.rounds, given.batch_size) < 1:
        parser.error("--rounds and --batch-size must be at least 1")
    torch.manual_seed(0)
    shape = given.batch_size, 3, given.image_size, given.image_size
    try:
        device = resolve_device(given.device)
        plain = build_embedder(ModelConfig(backbone=given.backbone, weights="none"), given.image_size).to(device).eval()
        if given.layout == "channels_last":
            plain = plain.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        ways = WAYS[given.what](plain, torch.randint(0, 256, shape, dtype=torch.uint8, device=device))
    except UserError as error:
        parser.error(str(error))
    with torch.inference_mode():
        timings = timed(ways, given.rounds, device)
    print(f"{given.backbone}, {given.image_size} px, batches of {given.batch_size}, {given.layout}")
    print(f"{device}, {torch.get_num_threads()} threads")
    print(report(timings))


if __name__ == "__main__":
    main()
