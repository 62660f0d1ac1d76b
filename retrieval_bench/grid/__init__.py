"""Grids: hundreds of runs on what there is, from the cores of a laptop to a Ray cluster."""
