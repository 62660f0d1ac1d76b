"""SpotTune: a policy network decides for each image which blocks are the frozen pretrained ones and which their fine-tuned copies.

Guo, Shi, Kumar, Grauman, Rosing and Feris, SpotTune: Transfer Learning through Adaptive Fine-tuning (CVPR 2019, arXiv 1811.08737)::

    x_l = I_l(x) tuned_l(x_{l-1}) + (1 - I_l(x)) frozen_l(x_{l-1})                       (equation 2, shortcut included in both)
    I_l(x) = argmax_i (log a_i + G_i),  G_i = -log(-log U_i)                             (equation 3, Gumbel-max)
    gradient of softmax((log a + G) / temperature)                                       (straight-through)

Policy and copies are trained together by the task's loss, the policy at its own rate.

Defaults: temperature 5 and weight decay 1e-3 of the policy as in the public code, which has 0.1 for the network's rate and 0.01 for the
policy's (SGD). ``policy_lr`` 1e-3 suits AdamW. The policy network is a small ResNet whose width follows the backbone's cost
(``retrieval_bench.models.routers.policy_network``); ``policy`` takes any backbone in its place, such as torchvision/resnet34, which is what
the paper is remembered to use beside ResNet-50.

Deviations: the public code freezes only the kernels of the original blocks and trains their batch norms and the stem; here all of a frozen
block and the stem stay as they are, as the paper says (``code_compat`` for the code's way). It draws Gumbel noise at test time too
(``eval_policy argmax,sample``: mean and standard deviation over three draws). ``majority`` takes the blocks that are more probable for most
training images of the last epoch, as the policy saw them then: augmented, and with the batch statistics of its own norms. What follows
the last block is trained. Copies of blocks keep their batch norms in training mode unless those are frozen (``--freeze-bn``), the frozen
blocks never do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import Look, Range, option
from retrieval_bench.strategies.learned_routing import LearnedRouting

if TYPE_CHECKING:
    from retrieval_bench.models.embedder import Embedder

EVAL_POLICIES = ("argmax", "sample", "all_tuned", "all_frozen", "majority")
DRAWS = 3


class SpotTune(LearnedRouting):
    """Each image takes its own route. Raises :class:`UserError` for a backbone without blocks and for options that cannot work."""

    look = Look("#0ca800", "^")

    @dataclass(frozen=True)
    class Options(LearnedRouting.Options):
        eval_policy: str = option(
            "argmax",
            "routes at test: argmax, sample, all_tuned, all_frozen or majority (of the training images); after commas, more to measure",
        )
        temperature: float = option(
            5.0, "of the Gumbel-softmax; scales the policy's gradients", above=0, search=Range(1.0, 10.0, log=True)
        )

        def check(self) -> None:
            super().check()
            policies = self.eval_policy.split(",")
            if any(policy not in EVAL_POLICIES or policies.count(policy) > 1 for policy in policies):
                raise UserError(
                    f"--spottune.eval-policy {self.eval_policy}: choose from {', '.join(EVAL_POLICIES)}, each once"
                )
            if policies[0] == "sample":
                raise UserError(
                    "--spottune.eval-policy sample: one draw says little; argmax,sample measures the mean and spread of several too"
                )

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
        self.router.argmax()
        if policy == "sample":
            self.router.sample(draw)
        elif policy != "argmax":
            rates = self.history["argmax_rate"][-1] if self.history else [0.0] * len(self.blocks)
            tuned = {"all_tuned": [1.0] * len(rates), "all_frozen": [0.0] * len(rates), "majority": rates}[policy]
            self.router.fixed = tuple(rate > 0.5 for rate in tuned)
