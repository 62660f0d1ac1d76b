"""Trained embedders in use: saved, exported, given images of your own, searched with."""
