"""Evaluation: embed images, find neighbours with FAISS, count. Everything after ``embed`` is pure functions of arrays."""
