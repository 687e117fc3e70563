"""The one shape that every model of the package has: a body, and a linear last layer on its hidden activation."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from noisesam.errors import InputError


class Classifier(nn.Module):
    """A network `f(x) = V h(x) + c` whose last layer and last hidden activation have names.

    `h` is `body`, `V` and `c` are the weight and bias of `last_layer`. The last layer is always called as a module, so that
    forward hooks on it fire.

    Args:
        body: maps inputs of shape (n, *input_shape) to hidden activations of shape (n, features), one row per example.
        features: length of the hidden activation.
        classes: number of logits; 1 is a binary classifier with one logit.
        input_shape: shape of one example, without the example axis.
        bias: whether the last layer has a bias.

    Attributes:
        body: the network below the last layer.
        last_layer: the `torch.nn.Linear` that maps hidden activations to logits.
        input_shape: shape of one example.
        features: length of the hidden activation.
        classes: number of logits.

    Raises:
        InputError: `classes` is less than one.

    Example:
        >>> import torch
        >>> from noisesam.models import Classifier
        >>> body = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
        >>> model = Classifier(body, features=3, classes=2, input_shape=(4,))
        >>> model(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    last_layer: nn.Linear

    def __init__(
        self, body: nn.Module, *, features: int, classes: int, input_shape: tuple[int, ...], bias: bool = True
    ) -> None:
        if classes < 1:
            raise InputError(
                f"classes is {classes}",
                expected="at least 1",
                remedy="Type classes=1 for one logit (binary), or the number of classes.",
            )
        super().__init__()
        self.body = body
        self.last_layer = nn.Linear(features, classes, bias=bias)
        self.input_shape = input_shape
        self.features = features
        self.classes = classes

    def hidden(self, inputs: Tensor) -> Float[Tensor, "n features"]:
        """Compute the last hidden activation `h(x_i)`, the input of the last layer, for every example.

        Args:
            inputs: examples of shape (n, *input_shape), floating point.

        Returns:
            Hidden activations of shape (n, features).

        Raises:
            InputError: the batch has another shape, or is not floating point.
        """
        self._check(inputs)
        return self.body(inputs)

    def forward(self, inputs: Tensor) -> Float[Tensor, "n classes"]:
        """Compute the logits `V h(x_i) + c` of every example.

        Args:
            inputs: examples of shape (n, *input_shape), floating point.

        Returns:
            Logits of shape (n, classes); (n, 1) for one logit.

        Raises:
            InputError: the batch has another shape, or is not floating point.
        """
        return self.last_layer(self.hidden(inputs))

    def extra_repr(self) -> str:
        """Say the shapes in the printed model."""
        return f"input_shape={self.input_shape}, features={self.features}, classes={self.classes}"

    def _check(self, inputs: Tensor) -> None:
        shape = tuple(inputs.shape)
        if shape[1:] != self.input_shape or not shape:
            raise InputError(
                f"The model was given inputs of shape {shape}",
                expected="(n, " + ", ".join(map(str, self.input_shape)) + "), one row per example",
                remedy=self._shape_remedy(shape),
            )
        if not inputs.is_floating_point():
            raise InputError(
                f"The model was given inputs of type {str(inputs.dtype).removeprefix('torch.')}",
                expected="floating point numbers",
                remedy="Type inputs.float(), and scale pixels to [0, 1] with / 255 where they are bytes.",
            )

    def _shape_remedy(self, shape: tuple[int, ...]) -> str:
        if shape == self.input_shape:
            return "Type inputs.unsqueeze(0) to make a batch of one example."
        if len(shape) > 1 and math.prod(shape[1:]) == math.prod(self.input_shape):
            sizes = ", ".join(map(str, self.input_shape))
            return f"Type inputs.reshape(-1, {sizes}), or make the model with input_shape={shape[1:]}."
        return f"Make the model with input_shape={shape[1:]}." if len(shape) > 1 else "Put the examples along the first axis."
