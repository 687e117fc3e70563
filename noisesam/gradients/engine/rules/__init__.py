"""One file per layer kind; importing this package registers them all."""

from noisesam.gradients.engine.rules import linear

__all__ = ["linear"]
