"""Per-example gradients, their split into logit scale and Jacobian, and the equation that all methods share."""

from noisesam.gradients.decomposition import GradientDecomposition, decompose, per_example_gradients
from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.losses import Loss, resolve
from noisesam.gradients.mixed_point import mixed_point_gradient

__all__ = [
    "GradientDecomposition",
    "Loss",
    "UnsupportedParameterUse",
    "decompose",
    "mixed_point_gradient",
    "per_example_gradients",
    "register_rule",
    "resolve",
]
