"""What SpotTune and its Global-k variant share: pairs of frozen and tuned blocks, and a policy network that learns to choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, ParameterGroup, Range, Strategy, block_names, option

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.backbone import Backbone
    from retrieval_bench.models.embedder import Embedder


class LearnedRouting(Strategy):
    """Routes every block by a policy that is trained at its own rate, and records what it does.

    Raises :class:`UserError` for a backbone without blocks and for options that cannot work.
    """

    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        policy: str = option(
            "auto",
            "policy network: auto, a small ResNet that costs at most a sixth of the backbone, or the name of any backbone",
        )
        policy_weights: str = option(
            "imagenet", "weights of a named policy network: imagenet, none, or a file (auto starts from random ones)"
        )
        policy_lr: float = option(1e-3, "learning rate of the policy", low=0, search=Range(1e-4, 1e-2, log=True))
        policy_weight_decay: float = option(1e-3, "weight decay of the policy", low=0)
        temperature: float = option(5.0, "of the Gumbel-softmax; scales the policy's gradients", above=0)
        code_compat: bool = option(
            False,
            "freeze only the kernels of frozen blocks, and train the stem, as the public code does (needs --no-freeze-bn)",
        )

        def check(self) -> None:
            if self.policy == "auto" and self.policy_weights not in ("imagenet", "none"):
                raise UserError(
                    f"--policy-weights {self.policy_weights}: the policy auto starts from random weights; name its network"
                )

    options: Any

    def check(self, model: Embedder) -> None:
        """Raises :class:`UserError` for options that cannot work with `model`."""
        from retrieval_bench.models.embedder import trains_batch_norms

        options = self.options
        if options.code_compat and not trains_batch_norms(model):
            raise UserError("code-compat trains batch norms, which are frozen: add --no-freeze-bn")

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        import torch

        from retrieval_bench.models.routers import LearnedRouter
        from retrieval_bench.models.routing import refuse_other_blocks, route

        self.blocks = block_names(model, type(self).__name__)
        self.check(model)
        self.history: dict[str, list[list[float]]] = {}
        features, self._network = self._policy(model.backbone, example_images.shape[-1])
        seed = int(torch.randint(2**62, ()))
        self.router = LearnedRouter(features, len(self.blocks), self.options.temperature, seed).to(
            example_images.device
        )
        self.backbone = route(model, self.router, self.blocks, self.options.code_compat)
        refuse_other_blocks(model, example_images, type(self).__name__)
        return model

    def _policy(self, backbone: Backbone, image_size: int) -> tuple[Backbone, dict[str, Any]]:
        """The policy's network without its last layer, and what the record says of it."""
        from retrieval_bench import cost
        from retrieval_bench.models.build import build_backbone
        from retrieval_bench.models.routers import policy_network
        from retrieval_bench.sections import ModelConfig

        if self.options.policy == "auto":
            return policy_network(backbone, image_size)
        named = build_backbone(
            ModelConfig(backbone=self.options.policy, weights=self.options.policy_weights), image_size
        )
        return named, {"parameters": cost.parameters(named), "macs": cost.macs(named, image_size)}

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        policy = {id(parameter): parameter for parameter in self.router.parameters() if parameter.requires_grad}
        rest = [
            {**group, "params": [value for value in group["params"] if id(value) not in policy]} for group in groups
        ]
        own = {"name": "policy", "params": list(policy.values())}
        own |= {"lr": self.options.policy_lr, "weight_decay": self.options.policy_weight_decay}
        return [group for group in (*rest, own) if group["params"]]  # pyright: ignore[reportReturnType]

    def end_epoch(self, state: EpochState) -> None:
        for name, values in self.router.statistics().items():
            self.history.setdefault(name, []).append([round(value, 4) for value in values])
        self.router.restart()
        self.backbone.decisions = None  # lets go of the last step's graph

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "fixed": self.router.fixed, "seed": self.router.seed}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        fixed = state["fixed"]
        self.history, self.router.fixed = (
            state["history"],
            None if fixed is None else tuple(fixed),
        )  # JSON knows lists only
        self.router.seed = state.get("seed", self.router.seed)  # older checkpoints rely on the same draw

    def info(self) -> dict[str, Any]:
        return {
            "blocks": self.blocks,
            "policy": self._network,
            **{f"{name}_per_epoch": rows for name, rows in self.history.items()},
        }
