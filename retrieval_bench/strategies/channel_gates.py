"""Channel gates: how much each channel matters is learned on frozen weights, then the network is pruned to a budget and trained.

Wang, Zhang, Xie, Zhou, Su, Zhang and Hu, Pruning from Scratch (AAAI 2020, arXiv 1909.12579). A gate per channel, 1 at the start,
multiplies the output of a batch norm before the activation. Only the gates and the loss's own parameters are trained, for
``search_epochs`` passes::

    L = task + gamma (mean |gate| - r)^2        (``form ratio``; ``form l1``: task + gamma sum |gate|)

at a rate of 0.01, with gates clamped to 0..1 after each step. The channels with the largest gates over all layers stay, as many as the
budget allows; the rest is removed, and the smaller network is trained for ``--epochs``.

Two regimes. ``from_scratch`` is the paper's: random weights for the search, and other random weights for the training, to which the paper
gives more epochs the more is pruned (Scratch-B: epochs / budget); the search may use a network that is ``expansion`` times as wide (its
channel expansion; here of inner widths only, where the public code widens all). ``inherit`` is ours: gates on pretrained weights, gates
folded into the norms, kept channels keep their weights and are fine-tuned.

Defaults: gamma 0.5 and the rate 0.01 as in the public code, whose r is 0.2 on CIFAR-10 and 0.5 on ImageNet. Deviations: the optimiser is
the run's own; batch norms use fixed statistics in the search (the pretrained ones; with random weights those of a few training images),
where the code lets them move; the code takes the gates with the best accuracy on held-out images among those of which at most r are not
zero, here ``held_out`` takes those whose network, pruned to the budget, has the best Recall@1 on held-out classes (off by default: the
last gates are taken); channels of inner widths only, the same in every kind of network (``retrieval_bench.models.channels``); of equal
gates those of earlier layers stay.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, Look, ParameterGroup, Range, TrainOnce, option
from retrieval_bench.strategies.channel_pruning import BudgetedPruning

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.channels import Channels
    from retrieval_bench.models.embedder import Embedder


class ChannelGates(BudgetedPruning):
    """Searches with gates before training. Raises :class:`UserError` for options that cannot work."""

    look = Look("#246c84", "P")
    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        regime: str = option(
            "inherit",
            "inherit: gates on the weights as they are, which kept channels keep; from_scratch: random weights (needs --no-freeze-bn)",
            choices=("inherit", "from_scratch"),
        )
        search_epochs: int = option(
            1, "passes over the training images in which only gates (and the loss's parameters) are trained", low=0
        )
        expansion: float = option(
            1.0,
            "from_scratch: factor on the free widths before the search; the budget stays a share of the network as it was",
            above=0,
        )
        gamma: float = option(0.5, "weight of the penalty on the gates", low=0, search=Range(0.05, 5.0, log=True))
        gate_lr: float = option(0.01, "learning rate of the gates", low=0, search=Range(1e-3, 0.1, log=True))
        sparsity: float = option(0.5, "mean gate that the penalty pulls to, the paper's r", low=0, high=1)
        held_out: float = option(
            0.0,
            "share of the training classes that the search leaves out; the gates come from the pass with the best Recall@1 on "
            "them, pruned to the budget (0: from the last pass)",
            low=0,
            below=1,
        )
        form: str = option(
            "ratio",
            "penalty: ratio, the squared difference of the mean gate to the sparsity; l1, the sum of all gates",
            choices=("ratio", "l1"),
        )

        def check(self) -> None:
            if self.held_out and self.search_epochs < 2:
                raise UserError(
                    f"--channel-gates.held-out {self.held_out}: needs at least two --channel-gates.search-epochs to choose from"
                )
            if self.regime == "inherit" and self.expansion != 1:
                raise UserError(
                    f"--channel-gates.expansion {self.expansion}: must be 1 with --channel-gates.regime inherit, whose "
                    "pretrained weights have the widths they have"
                )

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        from retrieval_bench.models.embedder import trains_batch_norms
        from retrieval_bench.models.gates import Gates, initialise

        options = self.options
        self._channels = self._expanded(model, example_images, options.expansion)
        self.choose(
            self._channels, {width.name: [1.0] * width.channels for width in self._channels.widths}
        )  # can it be met at all?
        net = model.backbone.net
        if options.regime == "from_scratch":
            if not trains_batch_norms(model):
                raise UserError(
                    "--channel-gates.regime from_scratch trains batch norms, which are frozen: add --no-freeze-bn"
                )
            initialise(model.backbone, example_images)
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._gates = model.backbone.gates = Gates(net, self._channels.widths)
        self._searching = True
        return model

    def _expanded(self, model: Embedder, example_images: Tensor, factor: float) -> Channels:
        """The free widths, each made `factor` times as wide."""
        channels = self.find(model, example_images)
        if factor == 1:
            return channels
        from retrieval_bench.models.channels import find_channels, set_widths

        set_widths(
            model.backbone, channels, {name: max(1, round(factor * size)) for name, size in channels.full.items()}
        )
        return find_channels(model.backbone, example_images.shape[-1])

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        if not self._searching:
            return groups
        gates: ParameterGroup = {
            "name": "gates",
            "params": list(self._gates),
            "lr": self.options.gate_lr,
            "weight_decay": 0.0,
        }
        return [gates, *(group for group in groups if group["name"] == "loss")]

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        if not self._searching:
            return None
        mean = self._gates.mean()
        if self.options.form == "l1":
            return self.options.gamma * mean * sum(gate.numel() for gate in self._gates)
        return self.options.gamma * (mean - self.options.sparsity) ** 2

    def after_step(self, model: Embedder) -> None:
        if self._searching:
            self._gates.clamp()

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        losses, recalls, found = [], [], []
        with state.holding_out(self.options.held_out) if self.options.held_out else nullcontext() as score:
            for number in range(self.options.search_epochs):
                losses.append(train_once(-1 - number))
                if score is not None:
                    found.append(self._gates.scores())
                    with self._gates.only(self.choose(self._channels, found[-1]).keep):
                        recalls.append(score())
        if recalls:
            self._gates.load(found[recalls.index(max(recalls))])
        self.end_search(state.model)
        self._facts |= {"search_losses": losses, "held_out_recall_at_1": recalls}
        state.rebuild()

    def end_search(self, model: Embedder) -> None:
        """Prunes by the gates as they are, and makes what is left trainable."""
        from retrieval_bench.models.gates import initialise

        chosen = self.choose(self._channels, self._gates.scores())
        mean = self._gates.mean().item()
        self._remove_gates(model)
        self.remove(model.backbone, chosen)
        self._train_again(model)
        if self.options.regime != "inherit":
            initialise(model.backbone)
        self._facts |= {"mean_gate": round(mean, 4)}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        from retrieval_bench.models.channels import remove_channels

        self._remove_gates(model)
        remove_channels(model.backbone, state["keep"], self._side)
        self._train_again(model)
        self._keep, self._facts = state["keep"], state["facts"]

    def _remove_gates(self, model: Embedder) -> None:
        """Folded in where weights are inherited."""
        (self._gates.fold if self.options.regime == "inherit" else self._gates.discard)(model.backbone.net)
        del model.backbone.gates

    def _train_again(self, model: Embedder) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trained)
        self._searching = False
