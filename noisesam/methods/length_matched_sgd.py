"""A control: SGD whose steps are as long as L-SAM's, and point where SGD's point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, Inputs, devices_of, trainable
from noisesam.gradients.decomposition import decompose_batch
from noisesam.gradients.losses import accurate
from noisesam.gradients.randomness import RandomState
from noisesam.methods.base import unchanged
from noisesam.methods.per_example import PerExampleMethod
from noisesam.methods.result import Outcome, StepCall, StepTerms
from noisesam.methods.weights import global_norm


class LengthMatchedSGD(PerExampleMethod):
    """(||g_L||/||g||) g: SGD's gradient rescaled to the norm of L-SAM's on the same batch at the same weights.

    g = mean_i J_i(w)^T r_i(w) is SGD's gradient, g_L = mean_i J_i(w)^T r_i(w+eps_i) L-SAM's. L-SAM weighs
    the examples anew, and by that it makes steps of another length. This control has the length alone: what it gains over SGD
    is owed to the learning rate that L-SAM in effect has, what L-SAM gains over it to the weighing. Where g is zero there is
    no direction, and the step is zero.

    Args:
        model: A module whose examples do not mix; BatchNorm in training mode is refused.
        rho: Radius of L-SAM's perturbation, in the units of the weights.
        options: As of `PerExampleMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> method = LengthMatchedSGD(model, rho=0.01)
        >>> method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        12

    References:
        A control of this project; L-SAM is that of Baek, Kolter, Raghunathan 2024, arXiv 2405.03676.
    """

    name = "length-matched-sgd"
    title = "Control: SGD with L-SAM's step length"
    rule = "||g_L||/||g|| g, g = mean_i J_i(w)^T r_i(w), g_L = mean_i J_i(w)^T r_i(w+eps_i)"
    cost = "3F + 3B"
    passes = ("3", "3")
    reference = "this project, a control for the step length"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of L-SAM's perturbation, in the units of the weights",
        "engine": "auto, fast or reference; all are exact",
    }
    jacobian_perturbed = False
    residual_perturbed = True

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        return self._rescaled(batch, parameters, call)[0]

    def _rescaled(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> tuple[Outcome, Tensor]:
        """Return the step and its factor c, which no scale enters: both lengths carry it."""
        devices = devices_of(self.model)
        state = RandomState.capture(devices)
        measured = super()._step(batch, parameters, call)
        after = RandomState.capture(devices)
        state.restore()  # both gradients see the same dropout masks
        plain, logits, losses = self._mean_gradient(batch, parameters, call.total)
        after.restore()
        factor = _ratio(global_norm(measured.gradient), global_norm(plain))
        outcome = Outcome(
            {name: (accurate(value) * factor).to(value.dtype) for name, value in plain.items()}, logits, losses,
            measured.forward_examples + batch.size, measured.backward_examples + batch.size,
            gradient_norms=measured.gradient_norms, further_losses=measured.further_losses, further_numbers=[factor],
        )  # fmt: skip
        return outcome, factor

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> None:
        """Return None: the perturbation gives the length of the step alone, and every term is taken at w."""
        del inputs, targets, index

    def step_terms(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> StepTerms:
        """Return the norms of c r_i(w) and of c J_i(w)^T r_i(w), c the factor of this batch."""
        batch = Batch.of(inputs, targets, index)
        parameters = trainable(self.model)
        with torch.enable_grad(), unchanged(self.model):
            _, factor = self._rescaled(batch, parameters, StepCall())
        with unchanged(self.model):
            parts = decompose_batch(self.model, batch, self.loss, engine=self.engine, chunk_size=self._chunk(batch))
        return StepTerms(
            parts.residual_norm * factor.to(parts.residual_norm.dtype),
            parts.gradient_norm * factor.to(parts.gradient_norm.dtype),
        )


def _ratio(length: Tensor, present: Tensor) -> Tensor:
    """Return length / present, zero where there is nothing to rescale."""
    return torch.where(present == 0, 0, length / torch.where(present == 0, 1, present))
