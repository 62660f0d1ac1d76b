"""Random policy: the last three blocks are fine-tuned for every image, each other block for a random half of them.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737) that keeps its pairs of blocks and has no policy network. In
training the halves are drawn anew at every step. At test an image's route is decided by its pixels and the run's seed: random, but the same
whenever the image is embedded. The stem stays frozen; what follows the last block is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import Look, Range, Strategy, block_names, option

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.embedder import Embedder


class RandomPolicy(Strategy):
    """Raises :class:`UserError` for a backbone without blocks, or with no more than the tuned ones."""

    look = Look("#e460b4", "*")
    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        last: int = option(
            3, "number of blocks at the end that are tuned for every image", low=0, search=Range(0, 7, blocks=True)
        )

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        import torch

        from retrieval_bench.models.routers import RandomRouter
        from retrieval_bench.models.routing import refuse_other_blocks, route

        names = block_names(model, "random_policy")
        if self.options.last >= len(names):
            raise UserError(
                f"--random-policy.last {self.options.last}: the backbone has {len(names)} blocks; 0 to {len(names) - 1}"
            )
        self._random, self._tuned = names[: len(names) - self.options.last], names[len(names) - self.options.last :]
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
