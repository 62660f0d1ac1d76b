"""Experiments: many runs, and the table that compares them."""
