"""Random policy: the last three blocks are fine-tuned for every image, each other block for a random half of them.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737) that keeps its pairs of blocks and has no
policy network. In training the halves are drawn anew at every step. At test an image's route is decided by its pixels
and the run's seed: random, but the same whenever the image is embedded. The stem stays frozen; what follows the last
block is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import pixel_noise, refuse_other_blocks, route
from retrieval_bench.strategies.base import Look, Range, Strategy, block_names, option


class RandomPolicy(Strategy):
    """Raises :class:`UserError` for a backbone without blocks, or with no more than the tuned ones."""

    rebuilds_blocks = True
    look = Look("#e460b4", "*")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        last: int = option(
            3, "number of blocks at the end that are tuned for every image", low=0, search=Range(0, 7, blocks=True)
        )

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        names, last = block_names(model, "random_policy"), self.options.last
        if last >= len(names):
            raise UserError(f"--random-policy.last {last}: the backbone has {len(names)} blocks; 0 to {len(names) - 1}")
        self._random, self._tuned = names[: len(names) - last], names[len(names) - last :]
        self._router = RandomRouter(len(self._random), int(torch.randint(2**62, ())))
        route(model, self._router, self._random)
        refuse_other_blocks(model, example_images, "random_policy")
        return model

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._router.seed}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._router.seed = state.get("seed", self._router.seed)  # older checkpoints rely on the same draw

    def info(self) -> dict[str, Any]:
        return {"random_blocks": self._random, "tuned_blocks": self._tuned}


class RandomRouter(nn.Module):
    """Tuned or frozen with equal probability: drawn anew at every training step, in eval mode decided by image and
    seed."""

    draws = True

    def __init__(self, blocks: int, seed: int):
        super().__init__()
        self.blocks = blocks
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, L), 0 or 1."""
        if self.training:
            return torch.randint(0, 2, (len(images), self.blocks)).to(images.device, torch.float32)
        return (pixel_noise(images, self.blocks, self.seed) < 0.5).to(torch.float32)
