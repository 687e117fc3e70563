"""The fast exact engine: per-example perturbations without per-example weights.

For a linear map the per-example gradient is a sum of T outer products, so the perturbed map is the shared map plus a
low-rank correction. Each layer kind has one rule (`rules/`); torch functions that receive a trainable parameter are
intercepted by the parameter's identity, so re-use, tying and functional calls come out right, and the model is used as it
is. What has no rule is refused here and computed by the reference engine instead (`selection`).
"""

from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.selection import engine_for
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse

__all__ = ["FastEngine", "UnsupportedParameterUse", "engine_for"]
