"""Data: the catalogue, obtaining and checking images, splits, and reading them into batches."""
