"""1-SAM, L-SAM and J-SAM: one equation, three choices of where the Jacobian and the residual are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Batch, ChunkSize, Inputs, devices_of, trainable
from noisesam.gradients.decomposition import decompose_batch
from noisesam.gradients.engine.selection import check_engine, engine_for
from noisesam.gradients.factors import Factor
from noisesam.gradients.losses import Loss
from noisesam.gradients.mixed_point import check_rho, gradient_and_norm, mixed_point_step
from noisesam.gradients.points import Engine, begun_again
from noisesam.gradients.randomness import RandomState
from noisesam.methods.base import Method, unchanged
from noisesam.methods.result import Outcome, StepCall, StepTerms


class PerExampleMethod(Method):
    """mean_i J_i(theta_J)^T r_i(theta_L), with eps_i = rho grad l_i / ||grad l_i|| of every example.

    Args:
        model: A module whose examples do not mix; BatchNorm in training mode is refused.
        rho: Radius of the perturbation, in the units of the weights. Values usual for batch SAM (0.05) can hold a network
            without normalisation at chance.
        engine: "auto", "fast" or "reference"; all are exact.
        loss: A name or a callable (logits, targets) -> losses (n,).
        chunk_size: Examples per chunk; "auto" takes as many as fit into `memory_budget`.
        memory_budget: Bytes that "auto" may use; a stated number, so that bits repeat: without one, two GiB on a CPU and
            eight on an accelerator.
        parameter_groups: [{"params": ..., "rho": ...}]: eps_g = rho_g g_g/||g|| with one global norm.
    """

    jacobian_perturbed: ClassVar[bool]
    residual_perturbed: ClassVar[bool]
    passes = ("2", "2")
    cost = "2F + 2B"
    reference = "Baek, Kolter, Raghunathan 2024, arXiv 2405.03676"
    hyperparameters = {  # noqa: RUF012
        "rho": "radius of the perturbation of every example, in the units of the weights",
        "engine": "auto, fast or reference; all are exact",
    }
    limits = ("examples must not mix: no BatchNorm in training mode",)

    def __init__(
        self, model: nn.Module, *, rho: float = 0.01, engine: str = "auto", chunk_size: ChunkSize = "auto", **options: Any
    ) -> None:
        super().__init__(model, chunk_size=chunk_size, **options)
        self.rho = check_rho(rho)
        self.engine = check_engine(engine)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        return per_example_outcome(
            self.model, batch, self.loss, self.radii(parameters), call.total,
            jacobian=self.jacobian_perturbed, residual=self.residual_perturbed,
            engine=self.engine, chunk_size=self._chunk(batch),
        )  # fmt: skip

    def perturbation(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> dict[str, Tensor] | None:
        """Return eps_i of every example by parameter name, (b, *shape)."""
        batch = Batch.of(inputs, targets, index)
        radii = self.radii(trainable(self.model))
        with unchanged(self.model):
            return per_example_perturbation(self.model, batch, self.loss, radii, self.engine, self._chunk(batch))

    def step_terms(self, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> StepTerms:
        """Return the norms of J_i(theta_J)^T r_i(theta_L) without materialising eps_i."""
        batch = Batch.of(inputs, targets, index)
        with unchanged(self.model):
            parts = decompose_batch(
                self.model, batch, self.loss, self.radii(trainable(self.model)),
                engine=self.engine, chunk_size=self._chunk(batch),
            )  # fmt: skip
        residual = parts.perturbed_residual_norm if self.residual_perturbed else parts.residual_norm
        gradient = {
            (True, True): parts.perturbed_gradient_norm,
            (True, False): parts.jacobian_perturbed_gradient_norm,
            (False, True): parts.logit_perturbed_gradient_norm,
        }[self.jacobian_perturbed, self.residual_perturbed]
        assert residual is not None
        assert gradient is not None
        return StepTerms(residual, gradient)


class OneSAM(PerExampleMethod):
    """1-SAM: J_i(w + eps_i)^T r_i(w + eps_i), SAM with a perturbation of its own for every example.

    Args:
        model: A module whose examples do not mix.
        rho: Radius of the perturbation, in the units of the weights.
        options: As of `PerExampleMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = OneSAM(model, rho=0.01).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> result.gradient_norms.shape
        torch.Size([4])

    References:
        Foret et al. 2021, arXiv 2010.01412; Baek, Kolter, Raghunathan 2024, arXiv 2405.03676.
    """

    name = "1-sam"
    title = "SAM with one example per shard"
    rule = "mean_i J_i(w+eps_i)^T r_i(w+eps_i)"
    jacobian_perturbed = True
    residual_perturbed = True


class LSAM(PerExampleMethod):
    """L-SAM: J_i(w)^T r_i(w + eps_i), the logit scale alone is perturbed.

    Args:
        model: A module whose examples do not mix.
        rho: Radius of the perturbation, in the units of the weights.
        options: As of `PerExampleMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = LSAM(model, rho=0.01).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> result.forward_examples, result.backward_examples
        (8, 8)

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676.
    """

    name = "l-sam"
    title = "SAM's logit scale alone"
    rule = "mean_i J_i(w)^T r_i(w+eps_i)"
    jacobian_perturbed = False
    residual_perturbed = True


class JSAM(PerExampleMethod):
    """J-SAM: J_i(w + eps_i)^T r_i(w), the network Jacobian alone is perturbed.

    Args:
        model: A module whose examples do not mix.
        rho: Radius of the perturbation, in the units of the weights.
        options: As of `PerExampleMethod`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> result = JSAM(model, rho=0.01).backward(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> result.forward_examples, result.backward_examples
        (8, 8)

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676.
    """

    name = "j-sam"
    title = "SAM's network Jacobian alone"
    rule = "mean_i J_i(w+eps_i)^T r_i(w)"
    jacobian_perturbed = True
    residual_perturbed = False


def per_example_outcome(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    radii: Mapping[str, float],
    scale: float,
    *,
    jacobian: bool,
    residual: bool,
    engine: str,
    chunk_size: int | None,
) -> Outcome:
    """Return the mixed-point gradient as the outcome of a step."""
    result = mixed_point_step(
        model, batch, loss, radii, jacobian_perturbed=jacobian, residual_perturbed=residual,
        engine=engine, chunk_size=chunk_size, scale=scale,
    )  # fmt: skip
    return Outcome(
        result.gradient, result.logits, result.losses, result.forward_examples, result.backward_examples,
        gradient_norms=result.gradient_norms, further_losses=[result.perturbed_losses],
    )  # fmt: skip


def per_example_perturbation(
    model: nn.Module, batch: Batch, loss: Loss, radii: Mapping[str, float], engine: str, chunk_size: int | None
) -> dict[str, Tensor]:
    """Return eps_i, materialised, (b, *shape) by parameter name."""
    pieces: dict[str, list[Tensor]] = {}
    with torch.enable_grad():
        for _, chunk in batch.chunks(chunk_size):
            chosen = engine_for(model, chunk.inputs, engine)

            def perturbation(chosen: Engine = chosen, chunk: Batch = chunk) -> dict[str, Factor]:
                point = chosen.at(chunk.inputs)
                (gradient, gain), _ = gradient_and_norm(point, loss.residual(point.logits, chunk.targets))
                return gradient.perturbation(radii, gain)

            state = RandomState.capture(devices_of(model))
            for name, factor in begun_again(state, perturbation).items():
                pieces.setdefault(name, []).append(factor.dense())
    return {name: torch.cat(found) for name, found in pieces.items()}
