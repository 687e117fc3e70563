"""Sparse SAM with a mask that drops and grows as training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch
from noisesam.methods.averages import loaded_tensors
from noisesam.methods.checks import check_count, check_number, saved_count
from noisesam.methods.drawing import check_seed, generator_at
from noisesam.methods.epochs import EpochMethod
from noisesam.methods.masks import Masks, check_pattern, saved_masks, top_masks, unflattened
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.shared_perturbation import Planned, SharedPerturbation
from noisesam.methods.weights import ascent


class DynamicSparseSAM(SharedPerturbation, EpochMethod):
    """The gradient at w + eps, eps = rho (g/||g||) m: m starts at random, and moves every `update_freq` epochs.

    The norm is that of the full g. In the first step of such an epoch the share drop_rate (1 + cos(pi e/E))/2 of the live
    weights, those with the smallest |g|, is dropped, and as many of the dead ones are grown at random: the density stays
    exactly 1 - sparsity (of whole tensors, their number stays). There is no gain in time on dense hardware: the passes are
    SAM's.

    Args:
        model: Any module.
        rho: Radius of the perturbation before masking, in the units of the weights.
        sparsity: Share of the weights that stay unperturbed; 0.5 by default, given by N:M patterns.
        update_freq: Epochs from one change of the mask to the next.
        drop_rate: Share of the live weights that is dropped at the start, falling to 0 along a cosine.
        epochs: E, the epochs of the whole run; `noisesam train` fills it in.
        pattern: "unstructured", "structured" (whole tensors) or "N:M" along the inputs of each weight (one swap per chosen
            group; parameters of one axis are always perturbed).
        seed: Seed of the masks.
        options: As of `SharedPerturbation`.

    Example:
        >>> import torch
        >>> method = DynamicSparseSAM(torch.nn.Linear(3, 2), epochs=10)
        >>> method.start_epoch(0)
        >>> method.backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])).forward_examples
        8

    References:
        Mi et al. 2022, "Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach", arXiv 2210.05177;
        2023, arXiv 2306.17504.
    """

    name = "ssam-d"
    title = "Sparse SAM, dynamic mask"
    rule = "grad L(w+eps), eps = rho (g/||g||) m, m drops the smallest |g| and grows at random"
    cost = "2F + 2B"
    passes = ("2", "2")
    reference = "Mi et al. 2022, arXiv 2210.05177"
    spans_training = ("epochs",)
    limits = ("needs start_epoch", "no gain in time on dense hardware")
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation before masking, in the units of the weights",
        "sparsity": "share of the weights that stay unperturbed; 0 is SAM",
        "update_freq": "epochs from one change of the mask to the next",
        "drop_rate": "share of the live weights that is dropped at the start",
        "epochs": "epochs of the whole run, over which drop_rate falls to 0",
        "pattern": "unstructured, structured (whole tensors) or N:M",
        "seed": "seed of the masks",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        sparsity: float | None = None,
        update_freq: int = 1,
        drop_rate: float = 0.5,
        epochs: int = 200,
        pattern: str = "unstructured",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, rho=rho, **options)
        self.pattern, self.sparsity = check_pattern(pattern, sparsity)
        self.update_freq = check_count("update_freq", update_freq)
        self.drop_rate = check_number("drop_rate", drop_rate, at_least=0, at_most=1)
        self.epochs = check_count("epochs", epochs)
        self.seed = check_seed(seed)
        self._masks: Masks = {}
        self._moved_in = 0  # epoch of the last change of the mask

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        _ = self.epoch
        return self._two_passes(batch, parameters, call)

    def _ascent(self, clean: Mapping[str, Tensor], parameters: dict[str, nn.Parameter], call: StepCall) -> Planned:
        eps = ascent(clean, self.radii(parameters))
        if self.sparsity == 0:
            return Planned(eps)
        masks, moved_in = self._masks, self._moved_in
        if not masks:
            masks, moved_in = self._first(parameters), self._epoch or 0
        elif call.new_step and self._epoch is not None and self._epoch >= moved_in + self.update_freq:
            masks, moved_in = self._next(masks, clean), self._epoch
        if unseen := {name: p for name, p in parameters.items() if name not in masks}:  # trainable only since the last step
            masks = masks | self._first(unseen)
            masks = {name: masks[name] for name, _ in self.model.named_parameters() if name in masks}

        def commit() -> None:
            self._masks, self._moved_in = masks, moved_in

        return Planned({name: value * masks[name] for name, value in eps.items()}, commit)

    def _first(self, parameters: Mapping[str, nn.Parameter]) -> Masks:
        """Draw the mask that training starts with."""
        generator = generator_at(self.seed, 0)
        scores = {name: torch.rand(p.shape, generator=generator).to(p.device) for name, p in parameters.items()}
        return top_masks(scores, self.pattern, self.sparsity)

    def dropped_share(self, epoch: int) -> float:
        """Return the share of the live weights that is dropped in an epoch: drop_rate (1 + cos(pi e/E))/2."""
        return self.drop_rate * (1 + math.cos(math.pi * min(epoch, self.epochs) / self.epochs)) / 2

    def _next(self, masks: Masks, clean: Mapping[str, Tensor]) -> Masks:
        """Drop the live weights with the smallest |g| and grow as many dead ones at random."""
        assert self._epoch is not None
        generator, share = generator_at(self.seed, self._epoch + 1), self.dropped_share(self._epoch)
        sizes = {
            name: clean[name].abs() if name in clean else torch.zeros(mask.shape, device=mask.device)
            for name, mask in masks.items()
        }
        if isinstance(self.pattern, tuple):
            return {name: _swapped(mask, sizes[name], self.pattern[1], share, generator) for name, mask in masks.items()}
        if self.pattern == "structured":
            names = list(masks)
            live = torch.tensor([bool(masks[name].flatten()[0]) for name in names])
            flat = torch.tensor([float(sizes[name].double().mean()) for name in names])
            moved = _dropped_and_grown(live, flat, share, generator)
            return {name: torch.full_like(masks[name], bool(kept)) for name, kept in zip(names, moved, strict=True)}
        flat = torch.cat([mask.flatten() for mask in masks.values()])
        moved = _dropped_and_grown(flat, torch.cat([size.flatten() for size in sizes.values()]), share, generator)
        return unflattened(moved, masks)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the masks."""
        return {**super().state_dict(), "masks": saved_masks(self._masks), "moved_in": self._moved_in}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        masks = loaded_tensors(state.get("masks"), self.model, "The mask")
        moved_in = saved_count(state, "moved_in")
        super().load_state_dict(state)
        self._masks, self._moved_in = masks, moved_in


def _dropped_and_grown(live: Tensor, sizes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return the mask after dropping the share of the live with the smallest sizes and growing as many that were dead."""
    places, dead = live.nonzero().flatten(), (~live).nonzero().flatten()
    count = min(int(share * len(places) + 1e-9), len(dead))
    moved = live.clone()
    moved[places[torch.argsort(sizes[places], stable=True)[:count]]] = False
    drawn = torch.randperm(len(dead), generator=generator)[:count].to(dead.device)
    moved[dead[drawn]] = True
    return moved


def _swapped(mask: Tensor, sizes: Tensor, of: int, share: float, generator: torch.Generator) -> Tensor:
    """Swap, in a share of the groups of M, the live entry with the smallest size for a dead one at random."""
    if mask.dim() < 2:
        return mask
    moved = mask.clone()
    for start in range(0, mask.shape[1], of):
        live, size = moved[:, start : start + of], sizes[:, start : start + of]
        smallest = torch.where(live, size, torch.inf).argmin(1, keepdim=True)
        drawn = torch.rand(live.shape, generator=generator).to(live.device)
        grown = torch.where(live, -1.0, drawn).argmax(1, keepdim=True)
        chosen = (torch.rand(smallest.shape, generator=generator).to(live.device) < share) & (~live).any(1, keepdim=True)
        changed = live.clone().scatter(1, smallest, False).scatter(1, grown, True)
        moved[:, start : start + of] = torch.where(chosen, changed, live)
    return moved
