"""LookSAM: SAM every k-th step, and what it added to the gradient in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch
from noisesam.methods.averages import loaded_tensors, saved_tensors
from noisesam.methods.checks import check_count, check_flag, check_number
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation, rescaled
from noisesam.methods.weights import ascent, global_norm, orthogonal_part


class LookSAM(SharedPerturbation):
    """At t % k = 0 SAM's gradient g_s, keeping g_v = g_s - (<g, g_s>/||g||^2) g; else g + alpha (||g||/||g_v||) g_v.

    The other k - 1 steps take exactly one pass. Norms and projection run over all trainable parameters as one vector, or
    tensor by tensor (`per_tensor`). Micro-batches after the first of a step do what the first does and keep its g_v.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        k: Steps from one SAM step to the next; 1 is SAM.
        alpha: Length of the reused direction relative to the gradient. The published 0.7 was tuned for vision transformers
            at a large rho; at 0.05 about 0.3 is usual.
        per_tensor: True for the projection and ||g||/||g_v|| within every tensor, as some released code does; eps keeps the
            norm of the whole vector.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> method = LookSAM(torch.nn.Linear(3, 2), k=2)
        >>> [method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).backward_examples for _ in range(4)]
        [8, 4, 8, 4]

    References:
        Liu, Mai, Chen, Hsieh, You 2022, "Towards Efficient and Scalable Sharpness-Aware Minimization", arXiv 2203.02714.
    """

    name = "looksam"
    title = "SAM every k-th step"
    rule = "t % k = 0: g_s = grad L(w+eps), g_v = g_s - (<g, g_s>/||g||^2) g; else g + alpha (||g||/||g_v||) g_v"
    cost = "(1 + 1/k)(F + B)"
    passes = ("1+1/k", "1+1/k")
    reference = "Liu et al. 2022, arXiv 2203.02714"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "k": "steps from one SAM step to the next; 1 is SAM",
        "alpha": "length of the reused direction relative to the gradient",
        "per_tensor": "True for norms and projection within every tensor",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        per_tensor: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.k = check_count("k", k, remedy="k=1 is SAM; k=5 takes a SAM step every fifth step.")
        self.alpha = check_number("alpha", alpha, at_least=0)
        self.per_tensor = check_flag("per_tensor", per_tensor)
        self._direction: dict[str, Tensor] = {}

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        if self._step_number(call) % self.k == 0 or not self._direction:
            return self._two_passes(batch, parameters, call)
        clean, logits, losses = self._one_pass(batch, parameters, call)
        return Outcome(
            rescaled(self._reused(clean), call.total, parameters), logits, losses, batch.size, batch.size,
            further_numbers=[global_norm(clean)],
        )  # fmt: skip

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters)))

    def _descent(self, clean: Mapping[str, Tensor], moved: Mapping[str, Tensor], call: StepCall) -> Planned:
        def commit() -> None:
            parts = [
                orthogonal_part({name: moved[name] for name in part if name in moved}, part) for part in self._parts(clean)
            ]
            self._direction = {name: value.clone() for part in parts for name, value in part.items()}

        return Planned(dict(moved), commit)

    def _reused(self, clean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return g + alpha (||g||/||g_v||) g_v."""
        found: dict[str, Tensor] = {}
        for part in self._parts(clean):
            kept = {name: self._direction[name] for name in part if name in self._direction}
            size = global_norm(kept)
            factor = torch.where(size > 0, self.alpha * global_norm(part) / size.clamp_min(torch.finfo(size.dtype).tiny), 0)
            found |= {name: value + factor * kept[name] if name in kept else value for name, value in part.items()}
        return found

    def _parts(self, gradient: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{name: value} for name, value in gradient.items()] if self.per_tensor else [dict(gradient)]

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and g_v."""
        return {**super().state_dict(), "direction": saved_tensors(self._direction)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        direction = loaded_tensors(state.get("direction"), self.model, "The direction g_v")
        super().load_state_dict(state)
        self._direction = direction
