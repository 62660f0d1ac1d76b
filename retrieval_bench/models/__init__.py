"""Models: a backbone with named, ordered blocks, its weights, and the embedder built on it."""
