"""Images to embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from retrieval_bench.data.loading import Batches
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import track


@torch.inference_mode()
def embed(model: Embedder, batches: Batches, flip_sum: bool = False) -> np.ndarray:
    """Vectors of all images of `batches`, in order, of the length that the model gives them.

    Args:
        model: the embedder; put into eval mode.
        batches: uint8 images (B, 3, S, S).
        flip_sum: the mean of the vectors of the image and its mirror (AutoLR adds them).

    Returns:
        float32 (N, D).
    """
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for images, _ in track(batches, "embedding test images", batches.images, size=lambda batch: len(batch[1])):
        images = images.to(device)
        vectors = model(images)
        if flip_sum:
            vectors = (vectors + model(images.flip(-1))) / 2
        parts.append(vectors.float().cpu().numpy())
    return np.concatenate(parts)


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, D), rows scaled to length 1."""
    return normalize(torch.from_numpy(vectors)).numpy()
