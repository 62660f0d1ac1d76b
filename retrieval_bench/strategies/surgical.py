"""Surgical fine-tuning: only a run of blocks is trained; or all of them, weighted by relative gradient norms.

Lee, Chen, Tajwar, Kumar, Yao, Liang and Finn, Surgical Fine-Tuning Improves Adaptation to Distribution Shifts (ICLR
2023, arXiv 2210.11466): which block is best depends on the shift, the first one if inputs change, middle ones if
features do, the last one if outputs do. ``tune first``, ``middle`` or ``last`` trains a third of the blocks; ``1..4``,
``layer1.0..layer1.1`` a run of them; ``2,3`` or names those. The stem is trained with the first block, a tail (a final
convolution or norm) with the last one; embedding layer and loss, which are new, always.

``tune auto`` is the paper's Auto-RGN. Before each epoch, the first one included, block k gets the learning rate::

    lr_k = lr * RGN_k / max_j RGN_j,   RGN_k = mean over batches of |g_k| / |theta_k|       (Euclidean norms)

g_k is the gradient of the loss for the block's trained parameters theta_k. So weights are in 0..1 and the largest is 1.
AutoLR, its nearest relative, asks how far blocks moved in an epoch and repeats it; this asks how far they want to move,
once. The five batches of 64 images and the division by the largest are those of the authors' public code as we remember
it. Deviations: one ratio per block, where the code has one per tensor; stem and tail are blocks of their own; gradients
are of the loss alone, without other parts' regularization, in eval mode, on the same images (augmented) in each epoch,
which count as cost; where no block has a finite positive ratio the rates stay ``lr``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import STEM, TAIL
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Categorical, EpochState, Look, Strategy, TrainOnce, block_names, option
from retrieval_bench.strategies.layer_pruning import named_block

THIRDS = ("first", "middle", "last")


class Surgical(Strategy):
    """Freezes or weighs blocks. Raises :class:`UserError` for a backbone without blocks, and for other names."""

    look = Look("#cc0048", "H")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        tune: str = option(
            "auto",
            "blocks to train: auto weighs all; first, middle or last third; a run (2..5), numbers from 1 or names",
            search=Categorical(("auto", *THIRDS)),
            shown=True,
        )
        images: int = option(320, "auto: training images for the gradients before each epoch", low=1)

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        names = block_names(model, "surgical")
        self._tuned = names if self.options.tune == "auto" else blocks_to_tune(self.options.tune, names)
        self._lrs: dict[str, float] = {}
        self._history: list[dict[str, dict[str, float | None]]] = []
        for block in model.backbone.blocks:
            if {STEM: names[0], TAIL: names[-1]}.get(block.name, block.name) not in self._tuned:
                for parameter in model.backbone.block_parameters(block):
                    parameter.requires_grad_(False)
        return model

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        if self.options.tune == "auto":
            self._lrs = self._lrs or state.lrs()
            norms = relative_gradient_norms(state, self.options.images)
            largest = max(norms.values(), default=0.0)
            usable = largest > 0 and all(map(isfinite, norms.values()))
            weights = {name: norm / largest if usable else 1.0 for name, norm in norms.items()}
            state.set_lrs({name: self._lrs[name] * weight for name, weight in weights.items()})
            finite = {name: norm if isfinite(norm) else None for name, norm in norms.items()}
            self._history.append({"relative_gradient_norms": finite, "weights": {**weights}})
        return train_once()

    def state_dict(self) -> dict[str, Any]:
        return {"lrs": self._lrs, "history": self._history}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._lrs, self._history = state["lrs"], state["history"]

    def info(self) -> dict[str, Any]:
        """The trained blocks, and of ``auto`` the ratios (null where not finite) and weights of each epoch by block."""
        return {"tuned_blocks": self._tuned, **({"epochs": self._history} if self._history else {})}


def relative_gradient_norms(state: EpochState, images: int) -> dict[str, float]:
    """|g| / |theta| of the trained parameters of each block, stem and tail, by its name: means over batches of at least
    `images` training images."""
    blocks = {block.name for block in state.model.backbone.blocks}
    groups = {group["name"]: group["params"] for group in state.optimizer.param_groups if group.get("name") in blocks}
    if not groups:
        return {}
    state.criterion.eval()  # the next pass sets its own mode
    ratios: dict[str, list[float]] = {name: [] for name in groups}
    for pixels, labels in state.example_batches(images):
        loss = state.criterion(state.model.eval()(pixels), labels)
        parameters = [parameter for group in groups.values() for parameter in group]
        gradients = iter(torch.autograd.grad(loss, parameters, allow_unused=True))
        for name, group in groups.items():
            own = [gradient for _, gradient in zip(group, gradients, strict=False) if gradient is not None]
            size = _norm(group)
            ratios[name].append(_norm(own) / size if size else 0.0)
    return {name: sum(several) / len(several) for name, several in ratios.items()}


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in tensors)) ** 0.5


def blocks_to_tune(tune: str, names: Sequence[str]) -> list[str]:
    """The names, in order, of the blocks that `tune` means among `names`; raises :class:`UserError` for none."""
    flag, count = f"--surgical.tune {tune}", len(names)
    first, is_run, last = tune.partition("..")
    if tune in THIRDS:
        chosen = [name for number, name in enumerate(names) if number * 3 // count == THIRDS.index(tune)]
    elif is_run:
        start, end = (names.index(named_block(flag, word.strip(), names)) for word in (first, last))
        chosen = list(names[start : end + 1])
    else:
        words = {named_block(flag, word.strip(), names) for word in tune.split(",") if word.strip()}
        chosen = [name for name in names if name in words]
    if not chosen:
        raise UserError(f"{flag}: means none of the {count} blocks")
    return chosen
