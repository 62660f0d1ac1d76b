"""Channel gates: the importance of each channel is learned on frozen weights, then the network is pruned and trained.

Wang, Zhang, Xie, Zhou, Su, Zhang and Hu, Pruning from Scratch (AAAI 2020, arXiv 1909.12579). A gate per channel, 1 at
the start, multiplies the output of a batch norm before the activation. Only the gates and the loss's own parameters are
trained, for ``search_epochs`` passes::

    L = task + gamma (mean |gate| - r)^2        (``form ratio``; ``form l1``: task + gamma sum |gate|)

at a rate of 0.01, with gates clamped to 0..1 after each step. The channels with the largest gates over all layers stay,
as many as the budget allows; the rest is removed, and the smaller network is trained for ``--epochs``.

Three regimes. ``from_scratch`` is the paper's: random weights for the search, and other random weights for the
training, to which the paper gives more epochs the more is pruned (``training scratch_b``); the search may use a network
that is ``expansion`` times as wide (its channel expansion; here of inner widths only, where the public code widens
all). ``lottery`` is the paper's comparison: the kept channels of the very weights that the search was on, batch norms
begun anew. ``inherit`` is ours: gates on pretrained weights, or after ``trained_epochs`` on those, are folded into the
norms; kept channels keep their weights and are fine-tuned.

Defaults: gamma 0.5 and the rate 0.01 as in the public code, whose r is 0.2 on CIFAR-10 and 0.5 on ImageNet. Deviations
(``search public`` does the first three as the code does): the optimiser is the run's own; batch norms use fixed
statistics in the search (the pretrained ones; with random weights those of a few training images), where the code
normalises by each batch; the loss's parameters are trained in the search, where the code has a fixed random classifier;
the code takes the gates with the best accuracy on held-out images among those of which at most r are not zero, here
``held_out`` takes those whose network, pruned to the budget, has the best Recall@1 on held-out classes (off by default:
the last gates are taken), with the statistics of the whole network; channels of inner widths only, the same in every
kind of network (``retrieval_bench.models.pruning``); of equal gates those of earlier layers stay.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import BatchNorm, Embedder, trains_batch_norms
from retrieval_bench.models.gates import Gates, initialise, live_norms
from retrieval_bench.models.pruning import Keep, find_channels, set_widths
from retrieval_bench.strategies.base import EpochState, Look, ParameterGroup, Range, TrainOnce, option
from retrieval_bench.strategies.budgeted_pruning import BudgetedPruning

FAR = 0.1
"""From the sparsity r to a mean gate that the record warns of."""


class ChannelGates(BudgetedPruning):
    """Searches with gates before training. Raises :class:`UserError` for options that cannot work."""

    rebuilds_blocks = True
    look = Look("#246c84", "P")
    _gates: Gates | None = None

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        regime: str = option(
            "inherit",
            "inherit: gates on the weights as they are, which kept channels keep; from_scratch: on random weights, and "
            "others are trained; lottery: on random weights, which are trained (both need --no-freeze-bn)",
            choices=("inherit", "lottery", "from_scratch"),
        )
        search_epochs: int = option(
            1, "passes over the training images in which only gates (and the loss's parameters) are trained", low=0
        )
        expansion: float = option(
            1.0,
            "from_scratch: factor on the free widths before the search; the budget stays a share of the network as it "
            "was",
            above=0,
        )
        gamma: float = option(0.5, "weight of the penalty on the gates", low=0, search=Range(0.05, 5.0, log=True))
        gate_lr: float = option(0.01, "learning rate of the gates", low=0, search=Range(1e-3, 0.1, log=True))
        sparsity: float = option(0.5, "mean gate that the penalty pulls to, the paper's r", low=0, high=1)
        held_out: float = option(
            0.0,
            "share of the training classes that the search leaves out; the gates come from the pass with the best "
            "Recall@1 on them, pruned to the budget (0: from the last pass)",
            low=0,
            below=1,
        )
        form: str = option(
            "ratio",
            "penalty: ratio, the squared difference of the mean gate to the sparsity; l1, the sum of all gates",
            choices=("ratio", "l1"),
        )
        search: str = option(
            "own",
            "the search: own, with the run's optimiser; adam; public, as in the public code (from_scratch): Adam, "
            "norms of each batch, the loss's parameters as they are drawn",
            choices=("own", "adam", "public"),
        )
        trained_epochs: int = option(0, "passes of ordinary training before the search, with the run's schedule", low=0)

        def check(self) -> None:
            super().check()
            if self.held_out and self.search_epochs < 2:
                raise UserError(
                    f"--channel-gates.held-out {self.held_out}: needs at least two --channel-gates.search-epochs to "
                    "choose from"
                )
            if self.search == "public" and self.regime == "inherit":
                raise UserError(
                    "--channel-gates.search public: not with --channel-gates.regime inherit, whose weights keep their "
                    "statistics"
                )
            if self.regime == "inherit" and self.expansion != 1:
                raise UserError(
                    f"--channel-gates.expansion {self.expansion}: must be 1 with --channel-gates.regime inherit, whose "
                    "pretrained weights have the widths they have"
                )

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        options = self.options
        if options.regime == "lottery" and not trains_batch_norms(model):
            raise UserError("--channel-gates.regime lottery trains batch norms, which are frozen: add --no-freeze-bn")
        self._channels = self.find_channels(model, example_images)
        if options.expansion != 1:
            wider = {name: max(1, round(options.expansion * size)) for name, size in self._channels.full.items()}
            if feature := self._channels.feature:
                wider[feature] = self._channels.full[feature]
            set_widths(model.backbone, self._channels, wider)
            self._channels = find_channels(model.backbone, example_images.shape[-1], options.ends)
        self.refuse_budget()
        if options.regime != "inherit":
            initialise(model.backbone, example_images)
        if not options.trained_epochs:
            self._begin_search(model)
        return model

    def _begin_search(self, model: Embedder) -> None:
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model.requires_grad_(False)
        model.backbone.gates = self._gates = Gates(model.backbone.net, self._channels.widths, self.options.norm)
        self._hooks = live_norms(model.backbone) if self.options.search == "public" else []

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        if self._gates is None:
            return groups
        gates = ParameterGroup(name="gates", params=list(self._gates), lr=self.options.gate_lr, weight_decay=0.0)
        return [gates, *(group for group in groups if group["name"] == "loss" and self.options.search != "public")]

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        """The penalty on the gates, until the channels are pruned."""
        if self._gates is None:
            return None
        mean = self._gates.mean()
        if self.options.form == "l1":
            return self.options.gamma * mean * sum(gate.numel() for gate in self._gates)
        return self.options.gamma * (mean - self.options.sparsity) ** 2

    def after_step(self, model: Embedder) -> None:
        if self._gates is not None:
            self._gates.clamp()

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        if self.options.trained_epochs:
            self.train_whole(train_once, state, self.options.trained_epochs, self.options.trained_epochs)
            head = state.criterion.state_dict()
            self._begin_search(state.model)
            state.rebuild()
            state.criterion.load_state_dict(head)
        assert self._gates is not None
        self.note_outputs(state)  # all gates are 1
        if self.options.search != "own":
            state.optimizer = torch.optim.Adam(state.optimizer.param_groups)
        gates, losses, recalls, scores = self._gates, [], [], []
        found = {"losses": losses, "recalls": recalls, "scores": scores}
        with state.holding_out(self.options.held_out) if self.options.held_out else nullcontext() as recall_at_1:
            for number in state.search("search", self.options.search_epochs, found):
                losses.append(train_once(-1 - self.options.trained_epochs - number))
                if recall_at_1 is not None:
                    scores.append(gates.scores())
                    with gates.only(self.choose(self._channels, scores[-1]).keep):
                        recalls.append(recall_at_1())
        if recalls:
            gates.load(scores[recalls.index(max(recalls))])
        mean, sparsity = round(gates.mean().item(), 4), self.options.sparsity
        self.cut(state, gates.scores())
        self._info |= {"mean_gate": mean, "search_losses": losses, "held_out_recall_at_1": recalls}
        if self.options.form == "ratio" and abs(mean - sparsity) > FAR:
            self._info["warning"] = (
                f"the mean gate {mean} is far from r = {sparsity:g}: a higher --channel-gates.gamma, "
                "--channel-gates.gate-lr or --channel-gates.search-epochs may bring it nearer"
            )

    def prune(self, model: Embedder, keep: Keep) -> None:
        """Ends the search: folds the gates into inherited weights, removes channels, trains what is left."""
        if self._gates is None:  # resumed after a training that came before the search
            return super().prune(model, keep)
        self._gates.remove(model.backbone.net, fold=self.options.regime == "inherit")
        self._gates = None
        for hook in self._hooks:
            hook.remove()
        del model.backbone.gates
        super().prune(model, keep)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trained)
        if self.options.regime == "lottery":
            for module in model.backbone.modules():
                if isinstance(module, BatchNorm):
                    module.reset_running_stats()
