"""Trained embedders in use: saved, taken elsewhere, given images of one's own, searched with."""
