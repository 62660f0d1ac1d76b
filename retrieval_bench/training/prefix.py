"""Frozen prefixes: what the frozen first modules make of an image is computed once and read from then on.

Where training images have fixed views (:attr:`~retrieval_bench.sections.DataConfig.fixed_views`), what arrives at the
border of the frozen prefix, the first module with a trained parameter, is the same in every epoch. It is kept for each
(image, view), and a step then runs the rest alone: an empty batch goes through the prefix, and at the border the kept
features take its place. So no network has to be taken apart, and whether one allows this is tried out beforehand.

Features are computed in chunks of one size, in the order of the rows, so that a resumed training reads the same bits.
The results are those of a training that passes every image through the prefix, up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval_bench.data.loading import Batches, Item
from retrieval_bench.errors import first_line
from retrieval_bench.models.backbone import STEM, Backbone
from retrieval_bench.models.embedder import Embedder, batch_norm_momentum, set_training_mode
from retrieval_bench.progress import logger

Forward = Callable[[Tensor], Tensor]


class Positions(Batches):
    """The same batches with the positions of images in `rows`, int64 (B,), in place of the images."""

    def __getitem__(self, items: list[Item]) -> tuple[Tensor, Tensor]:
        positions = torch.tensor([position for position, _ in items])
        return positions, torch.from_numpy(self.labels[positions.numpy()])


class _Reached(Exception):
    """A pass has come to the border; stops it."""


class FrozenPrefix:
    """The kept features of a training's images, at most `limit` bytes, on the device and in the precision of the
    passes."""

    def __init__(self, limit: float = 0.0):
        self.limit = limit
        self._key: tuple[Any, ...] | None = None
        self._border: nn.Module | None = None
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._stand_in, self._refused = torch.empty(0), ""

    def fill(self, model: Embedder, forward: Forward, batches: Batches, size: int) -> int | None:
        """Computes what is missing for the next pass of `batches`, `size` images at a time.

        `forward` embeds a batch with `model`, which is as in training. Draws random numbers.

        Returns: How many images passed through the prefix; None if this pass has to read images.
        """
        name, border = find_border(model) if self.limit and batches.config.fixed_views else ("", None)
        key = (name, border, len(batches.rows), _digest(model)) if border else None
        if key != self._key:
            self._key, self._border = key, border
            self._forget()
            if border:
                self._refused = self._try(model, forward, batches)
                done = f"not kept: {self._refused}" if self._refused else "kept"
                logger.info(f"features of the frozen modules before {name} are {done}")
        if not border or self._refused:
            return None
        self._view = batches.view
        return 0 if self._view in self._kept else self._compute(forward, batches, size)

    def positions(self, batches: Batches) -> Positions:
        """What the pass reads in place of the images."""
        return Positions(**{part.name: getattr(batches, part.name) for part in fields(Batches) if part.init})

    @contextmanager
    def reading(self, images: Tensor) -> Iterator[Tensor]:
        """A block in which a pass of the yielded batch is one of `images`, which are uint8 (B, 3, H, W), or int64 (B,)
        positions of images whose features are kept."""
        if images.ndim > 1:
            yield images
            return
        with self._replaced(self._kept[self._view][images].permute(np.argsort(self._axes).tolist())):
            yield self._stand_in

    @contextmanager
    def _replaced(self, features: Tensor) -> Iterator[None]:
        assert self._border is not None
        handle = self._border.register_forward_pre_hook(lambda _, inputs: (features, *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _at_border(self, forward: Forward, images: Tensor) -> Tensor:
        reached: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            reached.append(inputs[0])
            raise _Reached

        assert self._border is not None
        handle = self._border.register_forward_pre_hook(stop)
        try:
            forward(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not reached:
            raise RuntimeError("a pass does not come there")
        return reached[0]

    def _try(self, model: Embedder, forward: Forward, batches: Batches) -> str:
        """Passes two images; says why their features cannot be kept, or nothing if they can."""
        count, device = len(batches.rows), next(model.parameters()).device
        images = next(batches.read([[(0, 0), (count - 1, 0)]]))[0].to(device)
        try:
            with batch_norm_momentum(model, 0.0):
                in_training = self._at_border(forward, images)
            model.eval()
            with torch.no_grad():
                features, whole = self._at_border(forward, images), forward(images)
            if in_training.requires_grad or not torch.equal(in_training, features):
                return "they are random or trained"
            if not self._rest_runs_alone(forward, images, features, whole):
                return "what follows cannot run alone"
        except Exception as error:  # a network may do without a tensor at the border in many ways
            return first_line(error)
        finally:
            set_training_mode(model)
        size = features[0].nbytes * count * batches.config.fixed_views
        if size > self.limit:
            return f"they need --feature-cache-gb {size / 1e9:.1f}"
        # in the order in which they lie in memory, since convolutions round by it
        self._axes = sorted(range(features.ndim), key=lambda axis: -features.stride(axis))
        return ""

    def _rest_runs_alone(self, forward: Forward, images: Tensor, features: Tensor, expected: Tensor) -> bool:
        for count in (0, 1):  # some networks refuse an empty batch
            self._stand_in = images[:count].clone()
            try:
                with torch.no_grad(), self._replaced(features):
                    if torch.equal(forward(self._stand_in), expected):
                        return True
            except Exception:
                continue
        return False

    def _compute(self, forward: Forward, batches: Batches, size: int) -> int:
        count, device = len(batches.rows), self._stand_in.device
        starts = [max(0, min(start, count - size)) for start in range(0, count, size)]  # the last chunk is whole too
        chunks = [range(start, min(start + size, count)) for start in starts]
        with torch.no_grad():
            read = batches.read([[(position, 0) for position in chunk] for chunk in chunks])
            for chunk, (images, _) in zip(chunks, read, strict=True):
                features = self._at_border(forward, images.to(device)).permute(self._axes)
                if self._view not in self._kept:
                    self._kept[self._view] = features.new_empty(count, *features.shape[1:])
                self._kept[self._view][chunk.start : chunk.stop] = features
        return sum(map(len, chunks))


def find_border(model: Embedder) -> tuple[str, nn.Module | None]:
    """Name and module that the frozen prefix of `model` ends before; no module if there is no such prefix."""
    backbone = model.backbone
    modules = dict(backbone.net.named_modules())
    if type(backbone) is not Backbone:  # routes are decided by the images themselves
        return "", None
    for block in backbone.blocks:
        if any(parameter.requires_grad for parameter in backbone.block_parameters(block)):
            for path in (block.name,) if block.is_body else block.owns if block.name != STEM else ():
                if path in modules and any(value.requires_grad for value in modules[path].parameters()):
                    return path, modules[path]
            return "", None
    return "the embedding", model.embedding


def _digest(model: nn.Module) -> str:
    """Of all values that no step changes."""
    digest = hashlib.blake2b()
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for module in model.modules():
        frozen += [] if module.training else list(module.buffers(recurse=False))
    for value in frozen:
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
