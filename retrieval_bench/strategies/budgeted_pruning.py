"""What strategies that prune channels to a budget share: which channels stay, and what the rest is trained from.

``statistics matched`` sets every batch norm once after the cut, so that on training images its output before scale and
shift has the mean and deviation that it had in the whole network; ``mean`` puts back the mean only; ``stale`` leaves
them. Each pass over images for scores or statistics, :data:`EXAMPLES` of them, counts as cost.

``norm first`` is what was done before ``last`` could be chosen, and what the records of EfficientNet-lite0 have: in
depthwise networks a closed gate then leaves what the second norm adds, so ``held_out`` scores another network than the
pruned one. After ``layer_pruning`` the budget is a share of what that leaves (``full_cost`` in the record).

``regime`` says which weights the smaller network is trained from: ``inherit``, those that its channels have;
``lottery``, the first ones of the same channels, from before anything was trained (Frankle and Carbin, The Lottery
Ticket Hypothesis, ICLR 2019, there per weight); ``from_scratch``, other random ones. ``training scratch_b`` gives it as
many epochs as cost what ``--epochs`` of the whole network do (Liu et al., Rethinking the Value of Network Pruning, ICLR
2019): ``--epochs`` over the share of multiply-accumulates that is left, rounded.

Inner widths only: residual sums and the feature keep their size (``retrieval_bench.models.pruning``). ``ends`` frees
those of stem and feature too, as the paper prunes every convolution of a VGG; a linear layer behind is drawn anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.budget import Budget, choose_channels
from retrieval_bench.models.embedder import Embedder, trains_batch_norms
from retrieval_bench.models.gates import initialise
from retrieval_bench.models.pruning import Channels, Keep, find_channels, remove_channels
from retrieval_bench.models.statistics import norm_outputs, restore_outputs
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce, option

EXAMPLES = 1024
"""Training images at least that statistics are taken from, or all if there are fewer."""
Scores = dict[str, list[float]]
"""One per channel, by the width's name."""


class BudgetedPruning(Strategy):
    """What strategies that prune channels to a budget share; each calls :meth:`cut` in ``before_training``.

    Raises :class:`UserError` for a backbone without prunable channels and for a budget that cannot be met.
    """

    prunes = "channels"

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        budget: float = option(0.5, "share of the backbone's cost that is left", above=0, high=1, shown=True)
        unit: str = option("macs", "what the budget counts: macs or parameters", choices=("macs", "parameters"))
        minimum: float = option(0.1, "smallest share of each layer's channels", low=0, high=1)
        multiple: int = option(1, "widths are multiples of this, such as 8", low=1)
        statistics: str = option(
            "stale",
            "batch norms after the cut: stale, those of the whole network; mean and matched, set so that on training "
            "images their outputs have the mean, and matched also the deviation, that they had in the whole network",
            choices=("stale", "mean", "matched"),
        )
        norm: str = option(
            "first",
            "of several norms of a width, as in depthwise networks, that of gates, penalties, scales: first or last",
            choices=("first", "last"),
        )
        regime: str = option(
            "inherit",
            "weights of the smaller network: inherit, those that it has; lottery, those that it had before any "
            "training; from_scratch, other random ones (needs --no-freeze-bn)",
            choices=("inherit", "lottery", "from_scratch"),
        )
        training: str = option(
            "scratch_e",
            "scratch_e: --epochs passes over the smaller network; scratch_b: as many as cost what --epochs passes over "
            "the whole one do",
            choices=("scratch_e", "scratch_b"),
        )
        ends: bool = option(False, "also prune stem and feature, where nothing else adds to them: all layers of a VGG")

        def check(self) -> None:
            if self.regime != "inherit" and self.statistics != "stale":
                raise UserError(
                    f"statistics {self.statistics}: not with regime {self.regime}, whose batch norms begin anew"
                )

    options: Any
    _first: Embedder | None = None
    """The network before anything was trained, where something is before the cut."""

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        self._channels = self.find_channels(model, example_images)
        self.refuse_budget()
        return model

    def refuse_budget(self) -> None:
        """Refuses, before a search, a budget that no choice can meet."""
        self.choose(self._channels, {width.name: [1.0] * width.channels for width in self._channels.widths})

    def find_channels(self, model: Embedder, example_images: Tensor) -> Channels:
        """The free widths of the model's backbone, whose full cost the budget is a share of."""
        if self.options.regime == "from_scratch" and not trains_batch_norms(model):
            raise UserError("regime from_scratch trains batch norms, which are frozen: add --no-freeze-bn")
        self._image_size = example_images.shape[-1]
        channels = find_channels(model.backbone, self._image_size, self.options.ends)
        self._full_widths, self._full_macs = channels.full, channels.macs(channels.full)
        self._full_cost = (channels.macs if self.options.unit == "macs" else channels.parameters)(channels.full)
        return channels

    def choose(self, channels: Channels, scores: Scores) -> Budget:
        """The channels that stay within the budget, by their scores."""
        options = self.options
        return choose_channels(
            channels, scores, options.budget, options.unit, options.minimum, options.multiple, self._full_cost
        )

    def note_outputs(self, state: EpochState) -> None:
        """Notes what the norms of the whole network give, if they are to give it after the cut."""
        if self.options.statistics != "stale":
            self._outputs = norm_outputs(state.model.backbone, example_images(state))

    def train_whole(self, train_once: TrainOnce, state: EpochState, passes: int, schedule: int = 0) -> None:
        """Trains the whole network before the cut, with the run's schedule over `schedule` epochs or at its full rate;
        the weights that it had are what the rest of a chain holds to."""
        self._first = copy.deepcopy(state.model)
        for number in state.search("pass", passes, {}):
            train_once(-1 - number, schedule)

    def cut(self, state: EpochState, scores: Scores) -> None:
        """Prunes by `scores`; statistics of norms, weights and epochs of what is left are as the options say."""
        self.prune_by(state.model, scores)
        if (statistics := self.options.statistics) != "stale":
            backbone, images = state.model.backbone, example_images(state)
            restore_outputs(backbone, self._channels, self._keep, self._outputs, images, statistics == "matched")
        if self._first is not None:
            self._go_back(state.model, self._first)
        self._info["search_images_seen"] = state.images_seen
        if self.options.training == "scratch_b":
            share = self._channels.macs(self._info["widths"]) / self._full_macs
            self._info["epochs"] = state.epochs = round(state.epochs / share)
        state.rebuild()

    def _go_back(self, model: Embedder, first: Embedder) -> None:
        """What the regime says of weights that were trained before the cut; a chain holds to the first ones."""
        regime, is_redrawn = self.options.regime, self._channels.feature in self._keep
        self._first = None
        if regime != "from_scratch":
            remove_channels(first.backbone, self._keep, self._image_size, self.options.ends)
            model.backbone.start = first.backbone.state_dict()
        if regime == "lottery":
            model.backbone.load_state_dict(model.backbone.start)
        if regime != "inherit" and not is_redrawn:  # a linear layer that was trained goes back in both
            model.embedding.load_state_dict(first.embedding.state_dict())

    def prune(self, model: Embedder, keep: Keep) -> None:
        """Removes all channels but those in `keep`."""
        remove_channels(model.backbone, keep, self._image_size, self.options.ends)
        if self._channels.feature in keep:
            model.resize_feature(len(keep[self._channels.feature]))
        if self.options.regime == "from_scratch":
            initialise(model.backbone)

    def prune_by(self, model: Embedder, scores: Scores) -> None:
        """Prunes to the budget by `scores`, for the record too."""
        chosen = self.choose(self._channels, scores)
        self.prune(model, chosen.keep)
        self._keep = chosen.keep
        self._info: dict[str, Any] = {
            "widths": chosen.widths,
            "full_widths": self._full_widths,
            "full_cost": self._full_cost,
            "reached": round(chosen.reached, 6),
            "error": round(chosen.error, 6),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self._keep, "facts": self._info}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._keep, self._info = state["keep"], state["facts"]
        self.prune(model, self._keep)

    def info(self) -> dict[str, Any]:
        return self._info


def example_images(state: EpochState) -> Iterator[Tensor]:
    """:data:`EXAMPLES` training images, or all, in batches."""
    return (images for images, _ in state.example_batches(EXAMPLES))
