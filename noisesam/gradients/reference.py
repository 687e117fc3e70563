"""The reference engine: torch.func, one copy of the weights per example. Slow, obvious, right for any model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap

from noisesam.errors import InputError, first_line
from noisesam.gradients.batch import Inputs, batch_size, devices_of, take
from noisesam.gradients.factors import Dense, Factor
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import NoRecomputation, evaluate
from noisesam.gradients.substitution import WithWeights
from noisesam.gradients.traversal import modules_of


@dataclass
class Vectorisation:
    """Whether vmap can run a model: found out once, and said once."""

    possible: bool = True


class ReferenceEngine(Engine):
    """Run every example alone, as a batch of one, with its own weights: vectorised by vmap, or in a loop where vmap cannot.

    The weights of a chunk are stacked, (n, *shape), so that plain autograd through the evaluation gives the per-example
    gradients: nothing is approximated and nothing is shared between examples.
    """

    name = "reference"

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], vectorisation: Vectorisation | None = None
    ) -> None:
        super().__init__(model, parameters)
        self.vectorisation = vectorisation or Vectorisation()

    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> Point:
        """Evaluate every example alone at w, or at w + eps_i."""
        del previous, consume, perturbed_passes
        examples = batch_size(inputs)
        stacked = {}
        for name, parameter in self.parameters.items():
            weights = parameter.detach().expand(examples, *parameter.shape)
            if perturbation is not None and name in perturbation:
                weights = weights + perturbation[name].dense().to(weights.dtype)
            stacked[name] = weights.detach().requires_grad_()
        with NoRecomputation():
            return _StackedPoint(stacked, self._evaluate(stacked, inputs, examples))

    def _evaluate(self, stacked: dict[str, Tensor], inputs: Inputs, examples: int) -> Tensor:
        if self.vectorisation.possible:
            state = RandomState.capture(devices_of(self.model))
            try:
                return self._evaluate_vectorised(stacked, inputs, examples)
            except InputError:
                raise
            except (RuntimeError, NotImplementedError, ValueError) as error:
                # Most models that vmap refuses run alone; what is wrong with the model itself is raised again by the loop.
                state.restore()
                output = self._evaluate_in_a_loop(stacked, inputs, examples)
                self.vectorisation.possible = False
                warnings.warn(
                    f"{type(self.model).__name__} cannot be vectorised over examples ({first_line(error)}); "
                    "noisesam runs its examples one at a time: exact, but slow.",
                    stacklevel=2,
                )
                return output
        return self._evaluate_in_a_loop(stacked, inputs, examples)

    def _evaluate_vectorised(self, stacked: dict[str, Tensor], inputs: Inputs, examples: int) -> Tensor:
        tensors, rebuild = _split(inputs, examples)

        def alone(weights: dict[str, Tensor], values: tuple[Tensor, ...]) -> Tensor:
            one = rebuild(tuple(value.unsqueeze(0) for value in values))
            return evaluate(WithWeights(self.model, weights), one).squeeze(0)

        with warnings.catch_warnings(), _without_fused_inference(), _attributes_alive(self.model):
            # vmap runs some operations one example at a time; that this engine is slow is known.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return vmap(alone, randomness="different")(stacked, tensors)

    def _evaluate_in_a_loop(self, stacked: dict[str, Tensor], inputs: Inputs, examples: int) -> Tensor:
        rows = []
        for i in range(examples):
            # Copies: a model that writes to its weights would write to those of other examples.
            weights = {name: tensor[i].clone() for name, tensor in stacked.items()}
            rows.append(evaluate(WithWeights(self.model, weights), take(inputs, slice(i, i + 1))))
        return torch.cat(rows)


@contextmanager
def _without_fused_inference() -> Iterator[None]:
    """Keep torch's attention layers off their fused inference path, which has no derivative: vmap hides that one is wanted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _attributes_alive(model: nn.Module) -> Iterator[None]:
    """Leave no tensor of vmap's on a module that keeps what it has computed: outside it can be neither read nor saved."""
    modules = modules_of(model)
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):  # pyright: ignore[reportAttributeAccessIssue]
                    if name in own:
                        vars(module)[name] = own[name]
                    else:
                        del vars(module)[name]


def _split(inputs: Inputs, examples: int):
    """Separate the tensors that have an example axis from the rest, and say how to put them together again."""
    if isinstance(inputs, Tensor):
        return (inputs,), lambda values: values[0]
    items = list(inputs.items()) if isinstance(inputs, dict) else list(enumerate(inputs))
    keys = [key for key, value in items if isinstance(value, Tensor) and value.dim() and value.shape[0] == examples]
    as_dict = isinstance(inputs, dict)

    def rebuild(values: tuple[Tensor, ...]) -> Inputs:
        merged = dict(items) | dict(zip(keys, values, strict=True))
        return merged if as_dict else tuple(merged[key] for key, _ in items)  # pyright: ignore[reportReturnType]

    lookup = dict(items)
    return tuple(lookup[key] for key in keys), rebuild


class _StackedPoint(Point):
    """The evaluation with its stacked weights, whose plain gradients are the per-example gradients."""

    def __init__(self, stacked: dict[str, Tensor], output: Tensor) -> None:
        self.stacked = stacked
        self.output = output
        self.logits = output.detach()

    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Return the gradients of the stacked weights."""
        del perturbed_passes
        if not self.output.requires_grad:
            return PerExampleGradient({}, self.logits.shape[0])
        gradients = torch.autograd.grad(
            self.output, list(self.stacked.values()), cotangent.to(self.output.dtype), retain_graph=keep, allow_unused=True
        )
        factors = {name: Dense(g) for name, g in zip(self.stacked, gradients, strict=True) if g is not None}
        return PerExampleGradient(factors, self.logits.shape[0])

    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Return the gradients summed over the examples."""
        return self.both_gradients(cotangent, keep=keep)[0]
