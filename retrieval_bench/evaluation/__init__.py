"""From embeddings and labels to metrics: neighbours are counted, nothing here knows of images or models."""
