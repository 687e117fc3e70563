"""Which models can be trained as a stack: chains of linear layers with elementwise functions between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.models.classifier import Classifier
from noisesam.models.options import ACTIVATIONS

ELEMENTWISE: tuple[type[nn.Module], ...] = tuple(kind for kind in ACTIVATIONS.values() if isinstance(kind, type))
_ACCEPTED = "a chain of Flatten, Linear and the activations " + ", ".join(ACTIVATIONS)
_REMEDY = "Train it alone with noisesam.training.fit, or with Method.backward and an optimizer."


@dataclass(frozen=True)
class Chain:
    """f(x) = W_L phi(... phi(W_1 x + c_1) ...) + c_L by the names of its parameters.

    Equal chains compute the same function of their weights, so that models with equal chains can be stacked.
    """

    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    activations: tuple[tuple[nn.Module, ...], ...]
    """The functions after each layer but the last, none where two layers follow each other."""
    flattens: bool
    """Whether inputs of more than one axis become vectors first."""
    signature: tuple[str, ...]
    """What two chains must share: layers with their sizes and functions with their settings, in order."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of the layers."""
        return tuple(name for pair in zip(self.weights, self.biases, strict=True) for name in pair if name is not None)


def read_chain(model: nn.Module) -> Chain:
    """Read a model as a chain.

    Args:
        model: A `torch.nn.Linear`, a `torch.nn.Sequential`, or a `noisesam.models.Classifier` whose body is one.

    Returns:
        The chain of its layers.

    Raises:
        InputError: The model holds anything else, a hook, a frozen parameter, or one layer twice.

    Example:
        >>> read_chain(nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))).names
        ('1.weight', '3.weight', '3.bias')
    """
    weights: list[str] = []
    biases: list[str | None] = []
    activations: list[tuple[nn.Module, ...]] = []
    signature: list[str] = []
    flattens = False
    for name, module in _parts(model, ""):
        where = repr(name) if name else "the top"
        if _is_hooked(module):
            raise _refused(model, f"a hook on the forward pass of {where}", "layers without hooks")
        if type(module) is nn.Linear:
            prefix = f"{name}." if name else ""
            weights.append(prefix + "weight")
            biases.append(None if module.bias is None else prefix + "bias")
            activations.append(())
        elif type(module) in ELEMENTWISE:
            if not weights:
                raise _refused(model, f"{type(module).__name__} before the first Linear layer", _ACCEPTED)
            activations[-1] += () if isinstance(module, nn.Identity) else (_out_of_place(module),)
        elif type(module) is nn.Flatten and not weights and (module.start_dim, module.end_dim) == (1, -1):
            flattens = True
        else:
            raise _refused(model, f"{type(module).__name__} at {where}", _ACCEPTED)
        signature.append(repr(module))
    if not weights:
        raise _refused(model, "no Linear layer", _ACCEPTED)
    if activations.pop():
        raise _refused(model, "a function after the last Linear layer", "logits as outputs")
    parameters = dict(model.named_parameters())
    chain = Chain(tuple(weights), tuple(biases), tuple(activations), flattens, tuple(signature))
    if set(parameters) != set(chain.names):  # a layer that is used twice has one name of two
        raise _refused(model, "parameters that are shared or belong to no layer of the chain", _ACCEPTED)
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise _refused(model, f"the frozen parameter {frozen[0]!r}", "every parameter to be trained")
    return chain


def read_chains(models: Sequence[nn.Module]) -> Chain:
    """Read models that must be of one architecture, and return its chain.

    Raises:
        InputError: As of `read_chain`, or the models differ in their layers, sizes, dtypes or devices.
    """
    chain = read_chain(models[0])
    kind = _kind(models[0])
    for number, model in enumerate(models[1:], start=1):
        other = read_chain(model)
        if (other.signature, other.names) != (chain.signature, chain.names) or _kind(model) != kind:
            raise InputError(
                f"Model {number} of the stack is {' '.join(other.signature)} ({_words(model)}), "
                f"model 0 {' '.join(chain.signature)} ({_words(models[0])})",
                expected="one architecture, dtype and device in a stack",
                remedy="Train each architecture as a stack of its own.",
            )
    if len(kind) != 1 or next(iter(kind))[0] not in (torch.float32, torch.float64):
        raise _refused(models[0], f"parameters in {_words(models[0])}", "float32 or float64 throughout, on one device")
    return chain


def stack_weights(models: Sequence[Sequence[nn.Module]], chain: Chain) -> dict[str, Tensor]:
    """Return copies of all weights by name, (groups, members, *shape)."""
    own = [[dict(model.named_parameters()) for model in group] for group in models]
    return {
        name: torch.stack([torch.stack([weights[name].detach() for weights in group]) for group in own]) for name in chain.names
    }


def _parts(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the leaves of a chain with their names, in the order of the forward pass; a hooked container is a leaf."""
    if _is_hooked(module):
        return [(name, module)]
    if type(module) is Classifier:
        children = [("body", module.body), ("last_layer", module.last_layer)]
    elif type(module) is nn.Sequential:
        children = list(module._modules.items())  # named_children leaves out a layer's second place
    else:
        return [(name, module)]
    return [
        part for child, inner in children if inner is not None for part in _parts(inner, f"{name}.{child}" if name else child)
    ]


def _is_hooked(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _out_of_place(module: nn.Module) -> nn.Module:
    """Return the function itself, or its out-of-place twin: the value before it is needed for its slope."""
    if not getattr(module, "inplace", False):
        return module
    twin = copy.copy(module)
    twin.inplace = False  # pyright: ignore[reportArgumentType]
    return twin


def _kind(model: nn.Module) -> set[tuple[torch.dtype, torch.device]]:
    return {(parameter.dtype, parameter.device) for parameter in model.parameters()}


def _words(model: nn.Module) -> str:
    return " and ".join(sorted(f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in _kind(model)))


def _refused(model: nn.Module, given: str, expected: str) -> InputError:
    return InputError(f"A {type(model).__name__} with {given} cannot be stacked", expected=expected, remedy=_REMEDY)
