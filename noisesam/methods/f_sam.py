"""Friendly SAM: the perturbation leaves out what all batches have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.methods.averages import loaded_tensors, saved_tensors
from noisesam.methods.checks import check_choice, check_number
from noisesam.methods.result import StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent, global_norm

CANCELLED = 16.0
"""d counts as zero below this many rounding errors of g and sigma m."""


class FriendlySAM(SharedPerturbation):
    """The gradient at w + eps, eps = rho d/||d||, d = g_t - sigma m_t, m_t = ema_decay m_{t-1} + (1 - ema_decay) g_t.

    m_{-1} = 0. The authors' code differs in two points, which are options here: it subtracts m_{t-1} (`order="before"`), and
    starts with d = m = g_0 (`start="gradient"`). Where d vanishes against g, the step is SGD's. Micro-batches after the first
    of a step leave the average as it stands.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        sigma: Share of the average that is subtracted; 0 is SAM.
        ema_decay: Decay of the average.
        order: "after" subtracts m_t, as the paper states; "before" subtracts m_{t-1}, as its code does.
        start: "zero" for m_{-1} = 0; "gradient" for d_0 = m_0 = g_0, as in the code.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> FriendlySAM(model, sigma=1.0).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples
        8

    References:
        Li, Zhou, He, Cheng, Huang 2024, "Friendly Sharpness-Aware Minimization", arXiv 2403.12350.
    """

    name = "f-sam"
    title = "Friendly SAM"
    rule = "grad L(w+eps), eps = rho d/||d||, d = g - sigma m, m = ema_decay m + (1 - ema_decay) g"
    reference = "Li et al. 2024, arXiv 2403.12350"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "sigma": "share of the gradient average that is subtracted; 0 is SAM",
        "ema_decay": "decay of the gradient average",
        "order": "after: m_t is subtracted (paper); before: m_{t-1} (the authors' code)",
        "start": "zero: m_{-1} = 0 (paper); gradient: d_0 = m_0 = g_0 (the authors' code)",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        sigma: float = 1.0,
        ema_decay: float = 0.9,
        order: str = "after",
        start: str = "zero",
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.sigma = check_number("sigma", sigma, at_least=0)
        self.ema_decay = check_number(
            "ema_decay", ema_decay, at_least=0, below=1, remedy="At 1 the average would never move; type ema_decay=0.9."
        )
        self.order = check_choice("order", order, ("after", "before"))
        self.start = check_choice("start", start, ("zero", "gradient"))
        self._average: dict[str, Tensor] = {}

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        before, average = self._average, self._average
        first = not before
        if first and self.start == "gradient":
            average = dict(clean)
        elif first or call.new_step:
            average = {name: (1 - self.ema_decay) * value for name, value in clean.items()}
            for name, value in before.items():
                kept = self.ema_decay * value
                average[name] = average[name] + kept if name in average else kept

        def commit() -> None:
            self._average = {name: value.clone() for name, value in average.items()} if first else average

        subtracted = average if self.order == "after" else before
        if first and self.start == "gradient":
            subtracted = {}
        direction = {
            name: value - self.sigma * subtracted[name] if name in subtracted else value for name, value in clean.items()
        }
        eps = ascent(direction, self.radii(parameters))
        if subtracted:
            norm, scale = global_norm(direction), global_norm(clean) + self.sigma * global_norm(subtracted)
            kept = (norm > CANCELLED * torch.finfo(norm.dtype).eps * scale).to(norm.dtype)
            eps = {name: value * kept for name, value in eps.items()}
        return Planned(eps, commit)

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and the gradient average."""
        return {**super().state_dict(), "average": saved_tensors(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        average = loaded_tensors(state.get("average"), self.model, "The average")
        super().load_state_dict(state)
        self._average = average
