"""SpotTune: for each image a policy network chooses, block by block, the pretrained block or its fine-tuned copy.

Guo, Shi, Kumar, Grauman, Rosing and Feris, SpotTune: Transfer Learning through Adaptive Fine-tuning (CVPR 2019, arXiv
1811.08737)::

    x_l = I_l(x) tuned_l(x_{l-1}) + (1 - I_l(x)) frozen_l(x_{l-1})       (equation 2, shortcut included in both)
    I_l(x) = argmax_i (log a_i + G_i),  G_i = -log(-log U_i)             (equation 3, Gumbel-max)
    gradient of softmax((log a + G) / temperature)                       (straight-through)

Policy and copies are trained together by the task's loss, the policy at its own rate.

Defaults: temperature 5 and weight decay 1e-3 of the policy as in the public code, which has 0.1 for the network's rate
and 0.01 for the policy's (SGD). ``policy_lr`` 1e-3 suits AdamW. The policy network is a small ResNet whose width
follows the backbone's cost (:func:`policy_network`); ``policy`` takes any backbone in its
place, such as torchvision/resnet34, which the paper, as far as we know, uses beside ResNet-50.

Deviations: the public code freezes only the kernels of the original blocks and trains their batch norms and the stem;
here all of a frozen block and the stem stay as they are, as the paper says (``code_compat`` for the code's way). It
draws Gumbel noise at test time too (``eval_policy argmax,sample``: mean and standard deviation over three draws).
``majority`` takes the blocks that are more probable for most training images of the last epoch, as the policy saw them
then: augmented, and with the batch statistics of its own norms. What follows the last block is trained. Copies of
blocks keep their batch norms in training mode unless those are frozen (``--freeze-bn``), the frozen blocks never do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import STEM, Backbone, Block
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.embedder import Embedder, trains_batch_norms
from retrieval_bench.models.routing import LearnedRouter, refuse_other_blocks, route
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.base import EpochState, Look, ParameterGroup, Range, Strategy, block_names, option

EVAL_POLICIES = ("argmax", "sample", "all_tuned", "all_frozen", "majority")
DRAWS = 3


class LearnedRouting(Strategy):
    """What SpotTune and Global-k share: a policy, trained at its own rate and recorded, routes every block.

    Raises :class:`UserError` for a backbone without blocks and for options that cannot work.
    """

    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        policy: str = option(
            "auto",
            "policy network: auto, a small ResNet that costs at most a sixth of the backbone, or the name of any "
            "backbone",
        )
        policy_weights: str = option(
            "imagenet", "weights of a named policy network: imagenet, none, or a file (auto starts from random ones)"
        )
        policy_lr: float = option(1e-3, "learning rate of the policy", low=0, search=Range(1e-4, 1e-2, log=True))
        policy_weight_decay: float = option(1e-3, "weight decay of the policy", low=0)
        temperature: float = option(5.0, "of the Gumbel-softmax; scales the policy's gradients", above=0)
        code_compat: bool = option(
            False,
            "freeze only the kernels of frozen blocks, and train the stem, as the public code does (needs "
            "--no-freeze-bn)",
        )

        def check(self) -> None:
            if self.policy == "auto" and self.policy_weights not in ("imagenet", "none"):
                raise UserError(
                    f"--policy-weights {self.policy_weights}: the policy auto starts from random weights; name its "
                    "network"
                )

        def without_downloads(self) -> Any:
            return replace(self, policy_weights="none")

    options: Any

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        options, image_size = self.options, example_images.shape[-1]
        self.blocks = block_names(model, type(self).__name__)
        if options.code_compat and not trains_batch_norms(model):
            raise UserError("code-compat trains batch norms, which are frozen: add --no-freeze-bn")
        self.history: dict[str, list[list[float]]] = {}
        if options.policy == "auto":
            features, self._policy = policy_network(model.backbone, image_size)
        else:
            features = build_backbone(ModelConfig(backbone=options.policy, weights=options.policy_weights), image_size)
            self._policy = {"parameters": cost.parameters(features), "macs": cost.macs(features, image_size)}
        seed = int(torch.randint(2**62, ()))
        self.router = LearnedRouter(features, len(self.blocks), options.temperature, seed).to(example_images.device)
        self.backbone = route(model, self.router, self.blocks, options.code_compat)
        refuse_other_blocks(model, example_images, type(self).__name__)
        return model

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        policy = [parameter for parameter in self.router.parameters() if parameter.requires_grad]
        own = {id(parameter) for parameter in policy}
        lr, weight_decay = self.options.policy_lr, self.options.policy_weight_decay
        edited: list[ParameterGroup] = [
            {**group, "params": [parameter for parameter in group["params"] if id(parameter) not in own]}
            for group in groups
        ]
        edited.append(ParameterGroup(name="policy", params=policy, lr=lr, weight_decay=weight_decay))
        return [group for group in edited if group["params"]]

    def end_epoch(self, state: EpochState) -> None:
        for name, values in self.router.statistics().items():
            self.history.setdefault(name, []).append([round(value, 4) for value in values])
        self.router.reset_statistics()
        self.backbone.decisions = None  # releases the last step's graph

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "fixed": self.router.fixed, "seed": self.router.seed}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self.history = state["history"]
        self.router.fixed = None if state["fixed"] is None else tuple(state["fixed"])  # JSON knows lists only
        self.router.seed = state.get("seed", self.router.seed)  # older checkpoints rely on the same draw

    def info(self) -> dict[str, Any]:
        per_epoch = {f"{name}_per_epoch": rows for name, rows in self.history.items()}
        return {"blocks": self.blocks, "policy": self._policy, **per_epoch}


class SpotTune(LearnedRouting):
    """Each image takes its own route."""

    look = Look("#0ca800", "^")

    @dataclass(frozen=True)
    class Options(LearnedRouting.Options):
        eval_policy: str = option(
            "argmax",
            "routes at test: argmax, sample, all_tuned, all_frozen or majority (of the training images); after commas, "
            "more to measure",
        )
        temperature: float = option(
            5.0, "of the Gumbel-softmax; scales the policy's gradients", above=0, search=Range(1.0, 10.0, log=True)
        )

        def check(self) -> None:
            super().check()
            policies = self.eval_policy.split(",")
            if not set(policies) <= set(EVAL_POLICIES) or len(set(policies)) < len(policies):
                raise UserError(
                    f"--spottune.eval-policy {self.eval_policy}: choose from {', '.join(EVAL_POLICIES)}, each once"
                )
            if policies[0] == "sample":
                raise UserError(
                    "--spottune.eval-policy sample: one draw says little; argmax,sample also measures the mean and "
                    "spread of several"
                )

        @property
        def in_phases(self) -> bool:
            return "majority" in self.eval_policy  # which is that of the last epoch

    options: Options

    @property
    def _policies(self) -> list[str]:
        return self.options.eval_policy.split(",")

    def finalize(self, model: Embedder) -> Embedder:
        self._use(self._policies[0])
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        for policy in self._policies[1:]:
            for draw in range(DRAWS if policy == "sample" else 1):
                self._use(policy, draw)
                yield policy, model
        self._use(self._policies[0])

    def _use(self, policy: str, draw: int = 0) -> None:
        """Routes images by `policy` from now on."""
        blocks = len(self.blocks)
        rates = self.history["argmax_rate"][-1] if self.history else [0.0] * blocks
        fixed = {"all_tuned": (True,) * blocks, "all_frozen": (False,) * blocks}
        self.router.fixed = tuple(rate > 0.5 for rate in rates) if policy == "majority" else fixed.get(policy)
        self.router.draw = draw if policy == "sample" else None


def policy_network(backbone: Backbone, image_size: int) -> tuple[Backbone, dict[str, Any]]:
    """A small ResNet for the policy on `backbone`, random weights, and its ``width``, ``parameters`` and ``macs``.

    Four basic blocks of widths w, 2w, 4w and 8w after three 3x3 convolutions; w is the largest of 64, 32, 16 and 8 for
    which it costs at most a sixth of the backbone's multiply-accumulates at this size (8 if none does). Weights are
    drawn from torch's global generator.
    """
    limit = cost.macs(backbone, image_size) / 6
    block: Any = BasicBlock  # timm annotates the class as an instance
    width = 64
    while True:
        channels = (width, 2 * width, 4 * width, 8 * width)
        net = ResNet(block, (1, 1, 1, 1), num_classes=0, channels=channels, stem_type="deep", stem_width=width // 2)
        network = Backbone(net, (Block(STEM, ("",)),), *backbone.normalisation, 8 * width)
        macs = cost.macs(network, image_size)
        if macs <= limit or width == 8:
            return network, {"width": width, "parameters": cost.parameters(network), "macs": macs}
        width //= 2
