"""Models by name: one entry per model, from which `make`, `names` and `describe` follow."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from noisesam.errors import InputError, unknown_name
from noisesam.models.classifier import Classifier
from noisesam.models.options import ANYTHING, Check, Option

Factory = Callable[..., Classifier]


@dataclass(frozen=True)
class ModelDescription:
    """What a model is: its name, one sentence, its input, its options (name -> default, meaning) and its source."""

    name: str
    title: str
    input: str
    options: dict[str, Option]
    reference: str


@dataclass(frozen=True)
class _Entry:
    factory: Factory
    description: ModelDescription
    checks: dict[str, Check]


_ENTRIES: dict[str, _Entry] = {}


def register(
    name: str,
    *,
    title: str = "",
    images: bool = False,
    options: dict[str, tuple[str, Check]] | None = None,
    reference: str = "",
) -> Callable[[Factory], Factory]:
    """Put a model factory under a name, so that `make` and every configuration can use it.

    The factory is called as `factory(input_shape, classes, generator, **options)` and returns a `Classifier` whose
    parameters were drawn from `generator` alone (`initialise` does that). Its keyword-only arguments are the model's options.

    Args:
        name: a name that is not taken.
        title: one sentence for `describe`.
        images: whether inputs must have the shape (channels, height, width); otherwise any shape is handed on.
        options: per option its meaning and the check of its value; options left out are not checked.
        reference: author, year, title and arXiv id, where there is one.

    Returns:
        A decorator that returns the factory unchanged.

    Raises:
        InputError: the name is taken.

    Example:
        >>> import torch
        >>> from noisesam import models
        >>> @models.register("tanh-net", title="One hidden layer of tanh units.")
        ... def tanh_net(input_shape, classes, generator, *, width=16):
        ...     body = torch.nn.Sequential(torch.nn.Linear(input_shape[0], width), torch.nn.Tanh())
        ...     model = models.Classifier(body, features=width, classes=classes, input_shape=input_shape)
        ...     return models.initialise(model, generator)
        >>> models.make("tanh-net", input_shape=(3,), classes=2, width=5).features
        5
        >>> models.unregister("tanh-net")
    """
    if name in _ENTRIES:
        raise InputError(
            f"A model named {name!r} is registered already",
            expected="a new name",
            remedy=f"Choose another name, or type models.unregister({name!r}) first.",
        )
    given = options or {}

    def decorator(factory: Factory) -> Factory:
        described: dict[str, Option] = {}
        checks: dict[str, Check] = {}
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            meaning, check = given.get(parameter.name, ("", ANYTHING))
            described[parameter.name] = Option(parameter.default, meaning, check.expected)
            checks[parameter.name] = check
        shape = "(channels, height, width)" if images else "any shape, flattened"
        _ENTRIES[name] = _Entry(factory, ModelDescription(name, title, shape, described, reference), checks)
        return factory

    return decorator


def unregister(name: str) -> None:
    """Take a model out of the registry.

    Args:
        name: a registered name.

    Raises:
        InputError: there is no such name.
    """
    del _ENTRIES[_known(name)]


def names() -> tuple[str, ...]:
    """List the names of all models.

    Returns:
        The names, in order of registration.

    Example:
        >>> from noisesam import models
        >>> models.names()[:4]
        ('linear', 'two-layer-linear', 'deep-linear', 'mlp')
    """
    return tuple(_ENTRIES)


def describe(name: str) -> ModelDescription:
    """Say what a model is and which options it takes.

    Args:
        name: one of `names()`.

    Returns:
        The description, with default and meaning of every option.

    Raises:
        InputError: there is no such name.

    Example:
        >>> from noisesam import models
        >>> models.describe("mlp").options["hidden"].default
        (128, 128)
    """
    return _ENTRIES[_known(name)].description


def make(name: str, *, input_shape: Sequence[int] | int, classes: int, seed: int = 0, **options: Any) -> Classifier:
    """Build a model with initial weights that are a function of the seed alone.

    The weights are drawn on the CPU from a generator of their own, in the default dtype: the global generator is neither
    read nor moved, and the same seed gives the same weights whatever device the model is moved to afterwards.

    Args:
        name: one of `names()`.
        input_shape: shape of one example; an integer d means (d,). Images have the shape (channels, height, width).
        classes: number of logits; 1 gives one logit, outputs of shape (n, 1).
        seed: seed of the initial weights.
        **options: options of the model, see `describe(name).options`.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        InputError: the name, an option or its value is unknown, or the model cannot take the input shape.

    Example:
        >>> import torch
        >>> from noisesam import models
        >>> model = models.make("mlp", input_shape=(1, 8, 8), classes=10, hidden=(128, 128))
        >>> model(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """
    entry = _ENTRIES[_known(name)]
    shape = _checked_shape(name, input_shape, images=entry.description.input.startswith("("))
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise InputError(
            f"classes is {classes}",
            expected="an integer of at least 1",
            remedy="Type classes=1 for one logit (binary), or the number of classes.",
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}", expected="an integer in [0, 2^63)", remedy="Type seed=0.")
    checked = {option: _checked_option(name, entry, option, value) for option, value in options.items()}
    generator = torch.Generator().manual_seed(seed)
    # Constructors of torch modules draw weights of their own from the global generator; the fork puts it back.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            return entry.factory(shape, classes, generator, **checked)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise InputError(
                f"The model {name!r} with these options does not fit into memory",
                expected="weights of a few gigabytes at most",
                remedy="Make it smaller: " + (", ".join(sorted(checked)) or "its input shape") + ".",
            ) from error


def _known(name: str) -> str:
    if name not in _ENTRIES:
        raise unknown_name("model", name, _ENTRIES)
    return name


def _checked_shape(name: str, input_shape: Sequence[int] | int, *, images: bool) -> tuple[int, ...]:
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    if not shape or any(size < 1 for size in shape):
        raise InputError(
            f"input_shape is {shape}",
            expected="the shape of one example, positive integers",
            remedy="Type input_shape=(64,) for vectors or input_shape=(1, 28, 28) for images.",
        )
    if images and len(shape) != 3:
        side = math.isqrt(math.prod(shape))
        square = side * side == math.prod(shape)
        raise InputError(
            f"input_shape is {shape}",
            expected=f"(channels, height, width), since {name!r} works on images",
            remedy=f"Reshape the inputs, e.g. to (1, {side}, {side}), or use 'mlp'."
            if square
            else "Use 'mlp' for inputs that are not images.",
        )
    return shape


def _checked_option(name: str, entry: _Entry, option: str, value: Any) -> Any:
    if option not in entry.checks:
        raise unknown_name(f"option of model {name!r}:", option, entry.checks)
    default = entry.description.options[option].default
    if value is None and default is None:
        return None
    check = entry.checks[option]
    converted = check.convert(value)
    if converted is None and check is not ANYTHING:
        raise InputError(
            f"Option {option!r} of model {name!r} is {value!r}",
            expected=check.expected,
            remedy=f"Did you mean {check.nearest(value)!r}?" if check.nearest(value) else f"The default is {default!r}.",
        )
    return converted
