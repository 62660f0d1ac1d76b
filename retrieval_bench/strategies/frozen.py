"""Feature extractor: the whole backbone stays as it was pretrained.

The baseline of every fine-tuning paper (SpotTune's table calls it "feature extractor"). With no embedding layer nothing
is left to train and the run measures the pretrained features themselves: no training image is seen. With
``--embedding-dim`` the linear layer is trained, in a closed set the classifier of the loss.
"""

from __future__ import annotations

from torch import Tensor

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, Strategy


class Frozen(Strategy):
    """Trains no block of the backbone."""

    look = Look("#848490", "o")
    trains_backbone = False

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        model.backbone.requires_grad_(False)
        return model
