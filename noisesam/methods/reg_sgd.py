"""SGD with the penalty on the last hidden activation and the last layer that stands in for J-SAM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.accumulation import add_part, joined
from noisesam.gradients.batch import Batch, call_model
from noisesam.gradients.mixed_point import check_rho
from noisesam.methods.base import Method, dense_only, pull_back
from noisesam.methods.checks import check_choice, check_number
from noisesam.methods.gradients_by_name import refusing_reentrant_checkpoints
from noisesam.methods.result import Outcome, StepCall
from noisesam.regularizers import JSAMRegularizer


class RegularizedSGD(Method):
    """The gradient at w of mean_i l_i plus the J-SAM-equivalent l2 penalty.

    Constant mode: mean_i [ l_i + activation ||h_i||^2 ] + weight ||V||_F^2, h_i the last hidden activation, V the last
    layer's weight. Adaptive mode: the coefficients follow from rho; exact for two-layer linear networks, an approximation
    elsewhere. See `noisesam.JSAMRegularizer`, which does the same in any training loop.

    `step_terms` are those of the loss, J_i(w)^T r_i(w): the penalty has no residual.

    Args:
        model: Any module with a Linear layer.
        activation: Constant mode: coefficient of the mean squared activation.
        weight: Constant mode: coefficient of the squared last layer.
        mode: "constant" or "adaptive".
        rho: Adaptive mode: radius of the J-SAM perturbation that the penalty stands for.
        last_layer: Name of the last layer; found if it is not given.
        hidden_layer: Adaptive mode: name of the layer before; found if it is not given.
        loss: A name or a callable (logits, targets) -> losses (n,).
        chunk_size: Examples per chunk; changes memory, not the result beyond rounding.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> method = RegularizedSGD(model, activation=0.001, weight=0.001)
        >>> method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        4

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676. The coefficients are this
        project's own.
    """

    name = "reg-sgd"
    title = "SGD with the J-SAM-equivalent l2 penalty"
    rule = "grad of mean_i l_i + activation ||h_i||^2 + weight ||V||^2"
    perturbs = False
    cost = "F + B"
    passes = ("1", "1")
    reference = "Baek, Kolter, Raghunathan 2024, arXiv 2405.03676"
    hyperparameters = {  # noqa: RUF012
        "activation": "coefficient of the mean squared last hidden activation (constant mode)",
        "weight": "coefficient of the squared last layer (constant mode)",
        "mode": "constant or adaptive",
        "rho": "radius that the penalty stands for (adaptive mode)",
        "last_layer": "name of the last layer; found if not given",
        "hidden_layer": "name of the layer before (adaptive mode); found if not given",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        activation: float | None = None,
        weight: float | None = None,
        mode: str = "constant",
        rho: float | None = None,
        last_layer: str | None = None,
        hidden_layer: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        mode = check_choice("mode", mode, ("constant", "adaptive"))
        for name, value in (("activation", activation), ("weight", weight)):
            if value is not None:
                check_number(name, value, at_least=0, remedy=f"Type {name}=0.0 to switch it off.")
        if rho is not None:
            check_rho(rho)
        if mode == "constant":
            activation = DEFAULT_ACTIVATION if activation is None else activation
            weight = DEFAULT_WEIGHT if weight is None else weight
            self._options: dict[str, Any] = {"activation": activation, "weight": weight}
        else:
            self._options = {"mode": mode, "rho": rho, "hidden_layer": hidden_layer, "loss": self.loss}
            self._options |= {
                name: value for name, value in (("activation", activation), ("weight", weight)) if value is not None
            }
        if mode == "constant" and (rho is not None or hidden_layer is not None):
            raise InputError(
                "rho or hidden_layer with mode='constant'", expected="activation and weight", remedy="Set mode='adaptive'."
            )
        self.last_layer = last_layer
        self._make_regularizer().remove()

    def _make_regularizer(self) -> JSAMRegularizer:
        try:
            return JSAMRegularizer(self.model, self.last_layer, **self._options)
        except ValueError as error:
            # The regulariser, which knows nothing of the package, keeps the three parts in one text.
            given, _, rest = str(error).partition(". Expected ")
            expected, _, remedy = rest.partition(". ")
            raise InputError(given, expected=expected, remedy=remedy) from error

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        chunk_size = self._chunk(batch)
        if chunk_size is not None and chunk_size < batch.size:
            self._refuse_chunked_batch_normalisation()
        gradient: dict[str, Tensor] = {}
        rows: list[tuple[Tensor, Tensor]] = []
        with self._make_regularizer() as regularizer:
            for _, chunk in batch.chunks(chunk_size):
                output = self._recorded_forward(regularizer, chunk)
                penalty = regularizer(chunk.targets)
                share = call.total * chunk.size / batch.size
                residual = self.loss.residual(output, chunk.targets) * (call.total / batch.size)
                rows.append((output.detach(), self.loss(output.detach(), chunk.targets)))
                # One reverse pass for both: the penalty joins the output as one more number to be pulled back.
                add_part(gradient, _pull_back_both(output, residual, penalty, share, parameters))
        logits, losses = (joined(column) for column in zip(*rows, strict=True))
        return Outcome(gradient, logits, losses, batch.size, batch.size)

    def _recorded_forward(self, regularizer: JSAMRegularizer, chunk: Batch) -> Tensor:
        """Run the model so that the regularizer records it, in evaluation mode too (a probe of the step)."""
        last = regularizer.last_layer
        training, last.training = last.training, True
        try:
            return call_model(self.model, chunk.inputs)
        finally:
            last.training = training


DEFAULT_ACTIVATION = 1e-3
DEFAULT_WEIGHT = 1e-3


def _pull_back_both(
    output: Tensor, residual: Tensor, penalty: Tensor, share: float, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    if not output.requires_grad and not penalty.requires_grad:
        return pull_back(output, residual, parameters)
    with torch.autocast(output.device.type, enabled=False), refusing_reentrant_checkpoints():
        gradients = torch.autograd.grad(
            [output, penalty],
            list(parameters.values()),
            [residual.to(output.dtype), torch.full_like(penalty, share)],
            allow_unused=True,
        )
    return dense_only({name: value for name, value in zip(parameters, gradients, strict=True) if value is not None})
