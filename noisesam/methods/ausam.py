"""Asymptotically unbiased sampling for SAM: examples that perturbation hurts more are drawn more often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Batch, Inputs, trainable
from noisesam.methods.base import unchanged
from noisesam.methods.checks import check_choice, check_flag, check_number
from noisesam.methods.drawing import check_seed, uniform_by_index
from noisesam.methods.example_store import ExampleStore, require_index
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation, unscaled
from noisesam.methods.weights import ascent

SMALLEST_WEIGHTED = 1e-4
"""Smallest s_min of unbiased steps: a weight 1/p overflows float32 below 3e-39, and float16 (to 65,504) below 2e-5."""


class AUSAM(SharedPerturbation):
    """SAM on a drawn part of the batch: both passes see the drawn examples alone.

    An example's history is the mean of l_i(w+eps) - l_i(w) over the steps that drew it. Its probability is
    p_i = s_min + (s_max - s_min) h_i, h_i the history rescaled to [0, 1] within the batch; an example without history has
    s_max. The paper's exact probability is not settled: this is one reading of it. The history is kept under the example's
    index in the data set, a number from 0 to 16,777,215 (the table is dense).

    Args:
        model: Any module. The batch's statistics of BatchNorm are those of the drawn examples.
        rho: Radius of the perturbation, in the units of the weights.
        fraction: Share of the batch that is drawn with `sampling="fixed"`: ceil(fraction b) examples; 1 is SAM.
        s_min: Smallest probability; with `unbiased` at least 0.0001, which bounds the weights 1/p_i by 10,000.
        s_max: Largest probability.
        sampling: "fixed" draws ceil(fraction b) examples without replacement, in proportion to p; "bernoulli" draws each
            example with probability p_i (at least one is drawn).
        unbiased: True to weigh drawn examples by 1/p_i, which makes the step's mean that of the batch (with "bernoulli").
        seed: Seed of the draws, which depend on it, the step's number and the example's index alone.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> method = AUSAM(torch.nn.Linear(3, 2), fraction=0.5)
        >>> result = method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), index=torch.arange(4))
        >>> result.forward_examples, int(result.evaluated.sum())
        (4, 2)

    References:
        Deng et al. 2024, "Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization", arXiv 2406.08001.
    """

    name = "ausam"
    title = "SAM on sampled examples"
    rule = "SAM of examples drawn with p_i = s_min + (s_max - s_min) minmax(mean l_i(w+eps) - l_i(w))"
    cost = "fraction (2F + 2B)"
    passes = ("2 fraction", "2 fraction")
    reference = "Deng et al. 2024, arXiv 2406.08001"
    limits = ("needs index", "examples that are not drawn are not evaluated: their logits are NaN")
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation, in the units of the weights",
        "fraction": "share of the batch that is drawn (fixed); 1 is SAM",
        "s_min": "smallest probability of an example",
        "s_max": "largest probability of an example",
        "sampling": "fixed: ceil(fraction b) examples; bernoulli: each with its probability",
        "unbiased": "True to weigh drawn examples by 1/p (bernoulli)",
        "seed": "seed of the draws",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        fraction: float = 0.5,
        s_min: float = 0.1,
        s_max: float = 1.0,
        sampling: str = "fixed",
        unbiased: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.fraction = check_number("fraction", fraction, above=0, at_most=1)
        self.s_min = check_number("s_min", s_min, above=0, at_most=1)
        self.s_max = check_number("s_max", s_max, above=0, at_most=1)
        self.sampling = check_choice("sampling", sampling, ("fixed", "bernoulli"))
        self.unbiased = check_flag("unbiased", unbiased)
        self.seed = check_seed(seed)
        if self.s_min > self.s_max:
            raise InputError(
                f"s_min={s_min!r} above s_max={s_max!r}",
                expected="s_min at most s_max",
                remedy="Equal values draw every example alike.",
            )
        if self.unbiased and self.sampling == "fixed":
            raise InputError(
                "unbiased=True with sampling='fixed'",
                expected="sampling='bernoulli', where p_i is the probability that an example is drawn",
                remedy="Set sampling='bernoulli' or leave unbiased out.",
            )
        if self.unbiased and self.s_min < SMALLEST_WEIGHTED:
            raise InputError(
                f"s_min={s_min!r} with unbiased=True",
                expected=f"s_min of at least {SMALLEST_WEIGHTED:g}: weights 1/p of at most {1 / SMALLEST_WEIGHTED:,.0f}",
                remedy="Type s_min=0.1, or leave unbiased out.",
            )
        self._history = self._store()

    @staticmethod
    def _store() -> ExampleStore:
        return ExampleStore((2,), dtype=torch.float64)  # sum of the differences, and how many

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        drawn, weights = self._drawn(batch, call)
        part = batch.take(drawn)
        outcome = self._two_passes(part, parameters, call, weights=weights)
        index = require_index("AUSAM", part.index, part.size)
        rises = outcome.further_losses[0] - outcome.losses
        evaluated = torch.zeros(batch.size, dtype=torch.bool, device=outcome.losses.device)
        evaluated[drawn] = True

        def scattered(values: Tensor, fill: float) -> Tensor:
            rows = values.new_full((batch.size, *values.shape[1:]), fill)
            rows[drawn] = values
            return rows

        return replace(
            outcome,
            logits=scattered(outcome.logits, torch.nan),
            losses=scattered(outcome.losses, torch.nan),
            further_losses=[scattered(outcome.further_losses[0], 0.0)],
            evaluated=evaluated,
            remember=lambda: self._remember(index, rises),
        )

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        return Planned(ascent(clean, self.radii(parameters)))

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return the eps that the next step on this batch would take, from the examples that it would draw."""
        batch, parameters = Batch.of(inputs, targets, index), trainable(self.model)
        drawn, weights = self._drawn(batch, StepCall())
        with torch.enable_grad(), unchanged(self.model):
            clean, _, _ = self._mean_gradient(batch.take(drawn), parameters, 1.0, weights=weights)
            return ascent(self._penalised(unscaled(clean, 1.0), parameters), self.radii(parameters))

    def probabilities(self, index: Tensor) -> Float[Tensor, " b"]:
        """Return p_i of every example of a batch."""
        index = require_index("AUSAM", index, len(index))
        rows = self._history.read(index, "cpu")
        seen = rows[:, 1] > 0
        mean = rows[:, 0] / rows[:, 1].clamp_min(1)
        p = torch.full_like(mean, self.s_max)
        if bool(seen.any()):
            low, high = mean[seen].min(), mean[seen].max()
            relative = (mean - low) / (high - low) if high > low else torch.ones_like(mean)
            p = torch.where(seen, self.s_min + (self.s_max - self.s_min) * relative, p)
        return p

    def _drawn(self, batch: Batch, call: StepCall) -> tuple[Tensor, Tensor | None]:
        """Return the drawn rows, and their weights if the step is to be unbiased."""
        index = require_index("AUSAM", batch.index, batch.size)
        p = self.probabilities(index)
        u = uniform_by_index(self.seed, self._step_number(call), index)
        if self.sampling == "fixed":
            # The smallest of -log(u)/p: draws without replacement in proportion to p (Efraimidis, Spirakis 2006).
            count = max(1, math.ceil(self.fraction * batch.size - 1e-9))
            order = torch.argsort(-torch.log1p(-u) / p, stable=True)
            rows = order[:count].sort().values
        else:
            rows = (u < p).nonzero().flatten()
            if len(rows) == 0:
                rows = torch.argmax(p - u).view(1)
        # A pass takes the mean over the drawn examples; an unbiased one is over the batch. Weight decay is no example's.
        weights = len(rows) / (batch.size * p[rows]) if self.unbiased else None
        device = batch.targets.device
        return rows.to(device), None if weights is None else weights.to(device)

    def _remember(self, index: Tensor, rises: Tensor) -> None:
        rows = self._history.read(index, "cpu")
        rows[:, 0] += rises.detach().to("cpu", torch.float64)
        rows[:, 1] += 1
        self._history.write(index, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and the history by example."""
        return {**super().state_dict(), "history": self._history.state_dict()["rows"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        history = self._store()
        history.load_state_dict({"rows": state.get("history")})
        super().load_state_dict(state)
        self._history = history
