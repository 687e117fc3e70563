"""One file per layer kind; importing this package registers them all."""

from noisesam.gradients.engine.rules import (
    attention,
    convolution,
    elementwise,
    embedding,
    indexing,
    linear,
    matmul,
    normalisation,
)

__all__ = ["attention", "convolution", "elementwise", "embedding", "indexing", "linear", "matmul", "normalisation"]
