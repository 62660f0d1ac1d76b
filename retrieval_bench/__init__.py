"""retrieval_bench: which way of fine-tuning a pretrained network gives the best retrieval embeddings, at which cost?

Importing the package is cheap: torch, timm, pandas and FAISS are imported by the modules that compute with them.
"""

__version__ = "0.1.0"
