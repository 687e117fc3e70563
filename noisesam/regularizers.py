"""The J-SAM-equivalent l2 regulariser: what J-SAM does to the network Jacobian, at the cost of plain SGD.

This file is self-contained: it imports PyTorch and the standard library only, and may be copied into any project.
"""

from __future__ import annotations

import copy
import difflib
import math
import weakref
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]

LOSSES = ("cross_entropy", "logistic", "mse")
"""Losses whose residual has a closed form; any other loss is a callable (logits, targets) -> losses of shape (n,)."""


class JSAMRegularizer:
    r"""Penalise the last hidden activation and the last layer, as J-SAM does, with the forward pass that training does anyway.

    Constant mode (default), added to the mean loss of the batch:

        activation * mean_i ||h_i||^2  +  weight * ||V||_F^2

    h_i is the input of the last Linear layer for example i, V the weight of that layer (its bias is left out). If h_i has
    positions (any axes after the first), its square is the sum over all of them. The mean is over examples.

    Adaptive mode (`mode="adaptive"`), one coefficient per example and no constant to tune but the radius rho:

        mean_i (rho / N_i) (1/2 ||r_i||^2 ||z_i||^2  +  1/2 ||x_i||^2 ||V^T r_i||^2)
        N_i = sqrt(||r_i||^2 ||z_i||^2 + ||V^T r_i||^2 ||x_i||^2),   both r_i and N_i constant (stop-gradient)

    z_i is the input of the last layer, x_i the input of the hidden layer (the Linear layer before it), r_i = dl_i/df_i the
    residual at the last layer's output, which must be the logits. A layer with a bias appends 1 to its input in N_i, the
    hidden layer in the penalty too. A weight or bias that does not require a gradient is not perturbed by J-SAM and drops
    out of N_i and of the penalty.

    For two-layer linear networks, f = V W x with or without biases, the gradient of loss + penalty IS J-SAM's, to all
    orders in rho. EVERYWHERE ELSE IT IS AN APPROXIMATION of J-SAM: it leaves out the layers below and, between hidden and
    last layer, the activation function. The penalty is rho times the norm of the gradient that these two layers would
    have if nothing lay between, and J-SAM adds rho times the gradient of the gradient norm to first order. That norm
    depends on the layers below through x_i too, therefore x_i is not detached and gradients flow through it. Positions
    of x_i are summed over, an approximation as well.

    Activations are recorded by forward hooks: one in constant mode, two in adaptive mode. Only forwards with gradients
    enabled, while the last layer is in training mode, are recorded; evaluation never disturbs them, and neither do the
    transforms of `torch.func`. The latest complete forward counts and serves one call, with the weights that it had (those
    given to it, where it was a `functional_call`); if a layer runs several times in one forward, its last run counts. The
    first axis of every activation must be the example. Squares are summed in float32 (float64 for float64 models), also
    under autocast. Nothing enters `model.state_dict()`; a deep copy of the model alone does not feed this regularizer, a
    deep copy of both together gives a working pair. Not meant for models passed through `torch.compile`, whose graphs may
    leave hooks out, nor for last layers inside activation checkpointing, which runs them twice.

    Args:
        model: any module that holds a Linear layer.
        last_layer: name of the last layer as in `model.named_modules()`, or the layer itself; by default the last
            registered Linear layer.
        mode: "constant" or "adaptive".
        activation: constant mode: coefficient of the mean squared activation, at least 0.
        weight: constant mode: coefficient of the squared weight, at least 0.
        rho: adaptive mode: radius of the J-SAM perturbation, at least 0.
        hidden_layer: adaptive mode: name of the hidden layer, or the layer itself; by default the Linear layer
            registered before the last layer.
        loss: adaptive mode: "cross_entropy" (class labels), "logistic" (one logit, labels 0 and 1), "mse"
            (l = 1/2 ||f - y||^2; class labels stand for one-hot vectors), or a callable (logits, targets) -> losses (n,).

    Raises:
        ValueError: an argument is missing, out of range, belongs to the other mode, or names no Linear layer.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> inputs, targets = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])

        Three lines in any training loop:

        >>> regularizer = JSAMRegularizer(model, activation=1e-3, weight=1e-3)
        >>> loss = torch.nn.functional.cross_entropy(model(inputs), targets) + regularizer()
        >>> loss.backward()

        With one coefficient per example:

        >>> adaptive = JSAMRegularizer(model, mode="adaptive", rho=0.1)
        >>> loss = torch.nn.functional.cross_entropy(model(inputs), targets) + adaptive(targets)
        >>> loss.backward()

    References:
        Baek, Kolter, Raghunathan (2024), Why is SAM Robust to Label Noise?, arXiv 2405.03676 (the penalty with constants).
        The adaptive coefficients are derived in docs/mechanism.md of noisesam.
    """

    def __init__(
        self,
        model: nn.Module,
        last_layer: str | nn.Linear | None = None,
        *,
        mode: str = "constant",
        activation: float | int | None = None,
        weight: float | int | None = None,
        rho: float | int | None = None,
        hidden_layer: str | nn.Linear | None = None,
        loss: str | PerExampleLoss = "cross_entropy",
    ) -> None:
        if mode not in ("constant", "adaptive"):
            raise ValueError(
                _text(f"mode is {mode!r}", "'constant' or 'adaptive'", _suggestion(mode, ("constant", "adaptive")))
            )
        if not isinstance(model, nn.Module):
            raise ValueError(_text(f"model is a {type(model).__name__}", "a torch.nn.Module", "Pass the module itself."))
        self.mode = mode
        constants = {"activation": activation, "weight": weight}
        radius = {"rho": rho}
        _require_mode(
            mode, needed=constants if mode == "constant" else radius, foreign=radius if mode == "constant" else constants
        )
        self.activation = activation
        self.weight = weight
        self.rho = rho
        if mode == "constant" and hidden_layer is not None:
            raise ValueError(_foreign("hidden_layer", "adaptive"))
        if mode == "constant" and loss != "cross_entropy":
            raise ValueError(_foreign("loss", "adaptive"))
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(
                _text(f"Unknown loss {loss!r}", "one of: " + ", ".join(LOSSES) + ", or a callable", _suggestion(loss, LOSSES))
            )
        self.loss = loss
        self.last_name, self._last = _linear_layer(model, last_layer, "last_layer")
        self.hidden_name: str | None = None
        self._hidden: nn.Linear | None = None
        if mode == "adaptive":
            before = _layer_before(model, self.last_name) if hidden_layer is None else hidden_layer
            self.hidden_name, self._hidden = _linear_layer(model, before, "hidden_layer")
            if self._hidden is self._last:
                raise ValueError(
                    _text(
                        f"hidden_layer and last_layer are both {self.last_name!r}",
                        "two layers",
                        "Name an earlier Linear layer.",
                    )
                )
        self._recorded: _Forward | None = None
        self._hidden_pass: _Pass | None = None
        self._captures: list[_Capture] = []
        self._handles: list[RemovableHandle] = []
        for layer, is_last in ((self._hidden, False), (self._last, True)):
            if layer is not None:
                capture = _Capture(self, is_last=is_last)
                self._captures.append(capture)
                self._handles.append(layer.register_forward_hook(capture, with_kwargs=True))

    def __call__(self, targets: Tensor | None = None) -> Tensor:
        """Return the penalty of the latest training forward, to be added to the mean loss of the same batch.

        Args:
            targets: adaptive mode: the targets of the batch, first axis n; constant mode takes no notice of them, so
                that one loop serves both.

        Returns:
            The penalty, a scalar that gradients flow through.

        Raises:
            RuntimeError: there was no training forward since the last call, or the hooks were removed.
            ValueError: the activations are not one row per example, or the targets do not fit the logits.
        """
        if not self._handles:
            raise RuntimeError(
                _text("The regularizer was called after remove()", "its hooks in place", "Make a new JSAMRegularizer.")
            )
        if self._recorded is None:
            raise RuntimeError(
                _text(
                    f"The regularizer was called without a fresh training forward through the layer {self.last_name!r}",
                    "one forward of the model in training mode with gradients enabled before every call",
                    "Call model.train(), then model(inputs), then the regularizer, once each. If the model does not call "
                    "that layer as a module, name another one with last_layer.",
                )
            )
        z = self._recorded.last.inputs
        if z.dim() < 2 or z.shape[0] == 0:
            raise ValueError(
                _text(
                    f"The input of {self.last_name!r} has shape {tuple(z.shape)}",
                    "(n, ..., features), n at least 1",
                    "Put the examples along the first axis.",
                )
            )
        with torch.autocast(device_type=z.device.type, enabled=False):
            if self.mode == "constant":
                penalty = self._constant_penalty(_accurate(z), self._recorded.last)
            else:
                penalty = self._adaptive_penalty(_accurate(z), self._recorded, targets)
        self._recorded = None
        return penalty

    @property
    def last_layer(self) -> nn.Linear:
        """The layer whose input and weight are penalised; its training mode decides whether a forward is recorded."""
        return self._last

    @property
    def hidden_layer(self) -> nn.Linear | None:
        """The hidden layer of adaptive mode; None in constant mode."""
        return self._hidden

    def remove(self) -> None:
        """Take the hooks off the model; the regularizer cannot be called afterwards."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._captures.clear()
        self._recorded = self._hidden_pass = None

    def __enter__(self) -> JSAMRegularizer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> JSAMRegularizer:
        # Recorded activations belong to a graph that cannot be copied; the copied hooks are inert until claimed here.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            twin.__dict__[name] = None if name in ("_recorded", "_hidden_pass") else copy.deepcopy(value, memo)
        for old, new in zip(self._captures, twin._captures, strict=True):
            new.owner = weakref.ref(twin)
            new.is_last = old.is_last
        return twin

    def __repr__(self) -> str:
        if self.mode == "constant":
            return f"JSAMRegularizer({self.last_name!r}, activation={self.activation}, weight={self.weight})"
        return f"JSAMRegularizer({self.last_name!r}, mode='adaptive', rho={self.rho}, hidden_layer={self.hidden_name!r})"

    def _record(self, layer: nn.Linear, inputs: Tensor, output: Tensor, *, is_last: bool) -> None:
        # The last layer's mode decides for both hooks, so that a frozen lower part may stay in evaluation mode.
        if not (torch.is_grad_enabled() and self._last.training) or _inside_function_transform():
            return
        # The weights of this pass, which are others than the module's own in a functional call.
        found = _Pass(inputs, layer.weight, layer.bias)
        if is_last:
            self._recorded = _Forward(found, output, self._hidden_pass)
            self._hidden_pass = None
        else:
            self._hidden_pass = found  # kept apart until the last layer has run on the same batch

    def _constant_penalty(self, z: Tensor, last: _Pass) -> Tensor:
        assert self.activation is not None
        assert self.weight is not None
        return self.activation * _squared_norms(z).mean() + self.weight * _accurate(last.weight).square().sum()

    def _adaptive_penalty(self, z: Tensor, recorded: _Forward, targets: Tensor | None) -> Tensor:
        assert self.rho is not None
        last, hidden = recorded.last, recorded.hidden
        x = None if hidden is None else hidden.inputs
        if targets is None:
            raise ValueError(
                _text(
                    "The adaptive regularizer was called without targets",
                    "the targets of the batch",
                    "Type regularizer(targets).",
                )
            )
        if z.dim() != 2:
            raise ValueError(
                _text(
                    f"The input of {self.last_name!r} has shape {tuple(z.shape)}",
                    "(n, features) in adaptive mode",
                    "Use the constant mode: JSAMRegularizer(model, activation=..., weight=...).",
                )
            )
        if hidden is None or x is None or x.dim() < 2 or x.shape[0] != z.shape[0]:
            given = "did not run before it" if x is None else f"has an input of shape {tuple(x.shape)}"
            raise ValueError(
                _text(
                    f"The hidden layer {self.hidden_name!r} of the last layer {self.last_name!r} {given}",
                    f"a layer that runs before the last one on inputs of shape ({z.shape[0]}, ...)",
                    "Name the layer with hidden_layer=..., or use the constant mode.",
                )
            )
        x = _accurate(x)
        residual = _residual(self.loss, _accurate(recorded.logits.detach()), targets)
        # N is homogeneous in r: taking the largest entry out keeps the squares of tiny residuals from underflowing.
        scale = residual.abs().amax(1)
        unit = residual / torch.where(scale == 0, 1.0, scale).unsqueeze(1)
        # ||z||^2 and ||x||^2 as they enter the gradient of each layer: 0 for a frozen weight, +1 per position for a bias.
        z_square = _squared_norms(z) * last.weight.requires_grad
        x_square = _squared_norms(x) * hidden.weight.requires_grad
        last_bias = float(last.bias is not None and last.bias.requires_grad)
        hidden_bias = float(hidden.bias is not None and hidden.bias.requires_grad) * math.prod(x.shape[1:-1])
        unit_square = unit.square().sum(1)
        pulled_square = _squared_norms(unit @ _accurate(last.weight))
        norm = (unit_square * (z_square + last_bias) + pulled_square * (x_square + hidden_bias)).detach().sqrt()
        coefficient = torch.where(norm == 0, 0.0, self.rho * scale / torch.where(norm == 0, 1.0, norm))
        return (coefficient * 0.5 * (unit_square * z_square + (x_square + hidden_bias) * pulled_square)).mean()


def last_linear_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """Find the last registered Linear layer of a model.

    Registration order is the order of assignment in `__init__`, which is the order of execution in most models; where it
    is not, name the layer yourself. Layers that `torch.nn.MultiheadAttention` never calls as modules are passed over.

    Args:
        model: any module.

    Returns:
        The name as in `model.named_modules()`, and the layer.

    Raises:
        ValueError: the model holds no Linear layer.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> last_linear_layer(model)
        ('3', Linear(in_features=8, out_features=3, bias=True))
    """
    layers = _linear_layers(model)
    if not layers:
        raise ValueError(
            _text(
                f"A model of type {type(model).__name__} without a Linear layer",
                "at least one torch.nn.Linear that is called as a module",
                "Write the last layer as torch.nn.Linear.",
            )
        )
    return list(layers.items())[-1]


class _Pass(NamedTuple):
    """What a layer met in a forward pass."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


class _Forward(NamedTuple):
    """A forward pass through both layers."""

    last: _Pass
    logits: Tensor
    hidden: _Pass | None


class _Capture:
    """A forward hook that hands a layer's input and output to its regularizer, if that is alive.

    A copied or unpickled model carries the hook without an owner, so that it feeds nobody and holds no activations.
    """

    def __init__(self, owner: JSAMRegularizer | None = None, *, is_last: bool = True) -> None:
        self.owner: Callable[[], JSAMRegularizer | None] = _nobody if owner is None else weakref.ref(owner)
        self.is_last = is_last

    def __call__(self, layer: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        owner = self.owner()
        if owner is not None:
            owner._record(layer, args[0] if args else kwargs["input"], output, is_last=self.is_last)

    def __reduce__(self) -> tuple[type[_Capture], tuple[()]]:
        return (_Capture, ())


def _nobody() -> None:
    return None


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    never_called = nn.modules.linear.NonDynamicallyQuantizableLinear
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, never_called)}


def _linear_layer(model: nn.Module, layer: str | nn.Linear | None, argument: str) -> tuple[str, nn.Linear]:
    if layer is None:
        return last_linear_layer(model)
    layers = _linear_layers(model)
    for name, module in layers.items():
        if module is layer or name == layer:
            return name, module
    if isinstance(layer, str):
        other = dict(model.named_modules()).get(layer)
        given = f"{argument}={layer!r} names " + ("no module of the model" if other is None else f"a {type(other).__name__}")
        remedy = _suggestion(layer, layers) or "Take a name from model.named_modules()."
    else:
        given, remedy = f"{argument} is a layer that the model does not hold", "Pass a layer of this model, or its name."
    raise ValueError(_text(given, "one of the Linear layers: " + ", ".join(map(repr, layers)), remedy))


def _layer_before(model: nn.Module, last_name: str) -> str:
    names = list(_linear_layers(model))
    position = names.index(last_name)
    if position == 0:
        raise ValueError(
            _text(
                f"No Linear layer is registered before the last layer {last_name!r}",
                "two Linear layers in adaptive mode",
                "Name the hidden layer with hidden_layer=..., or use the constant mode: "
                "JSAMRegularizer(model, activation=..., weight=...).",
            )
        )
    return names[position - 1]


def _residual(loss: str | PerExampleLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """Return dl_i/df_i of shape (n, classes), detached."""
    if callable(loss):
        return _autograd_residual(loss, logits, targets)
    n, classes = logits.shape
    if loss == "mse":
        return logits - _values(logits, targets)
    if loss == "cross_entropy" and classes < 2:
        raise ValueError(
            _text("One logit per example for the loss 'cross_entropy'", "at least two", "Type loss='logistic' for one logit.")
        )
    if loss == "logistic" and classes != 1:
        raise ValueError(_text(f"{classes} logits per example for the loss 'logistic'", "one", "Type loss='cross_entropy'."))
    if loss == "logistic":
        if targets.shape not in ((n,), (n, 1)) or not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError(
                _text(f"Targets of shape {tuple(targets.shape)}", f"labels 0 and 1 of shape ({n},)", "Write t = -1 as 0.")
            )
        sign = 2 * targets.to(logits.dtype).reshape(n, 1) - 1
        return -sign * torch.sigmoid(-sign * logits)
    observed = _labels(targets, n, classes).unsqueeze(1)
    # The observed class as minus the sum of the others: p_y - 1 loses every digit where the example is fitted.
    others = logits.softmax(1).scatter(1, observed, 0.0)
    return others.scatter(1, observed, -others.sum(1, keepdim=True))


def _autograd_residual(loss: PerExampleLoss, logits: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        losses = loss(leaf, targets)
        if losses.shape != logits.shape[:1]:
            raise ValueError(
                _text(
                    f"The loss returned shape {tuple(losses.shape)} for {logits.shape[0]} examples",
                    f"one loss per example, shape ({logits.shape[0]},)",
                    "Type reduction='none' in the loss.",
                )
            )
        return torch.autograd.grad(losses.sum(), leaf)[0]


def _labels(targets: Tensor, n: int, classes: int) -> Tensor:
    integers = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != (n,) or not integers or bool(((targets < 0) | (targets >= classes)).any()):
        raise ValueError(
            _text(
                f"Targets of shape {tuple(targets.shape)} and type {targets.dtype}"
                + (f" from {int(targets.min())} to {int(targets.max())}" if integers and targets.numel() else ""),
                f"integer labels of shape ({n},) from 0 to {classes - 1}",
                "Pass the targets of the same batch, or another loss.",
            )
        )
    return targets.long()


def _values(logits: Tensor, targets: Tensor) -> Tensor:
    n, classes = logits.shape
    if targets.shape == logits.shape or (classes == 1 and targets.shape == (n,)):
        return targets.to(logits.dtype).reshape(logits.shape)
    return nn.functional.one_hot(_labels(targets, n, classes), classes).to(logits.dtype)


def _accurate(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _squared_norms(rows: Tensor) -> Tensor:
    return rows.flatten(1).square().sum(1)


def _inside_function_transform() -> bool:
    # Tensors of torch.func die with the transform; torch offers no public question for this.
    functorch = getattr(torch._C, "_functorch", None)
    interpreter = getattr(functorch, "peek_interpreter_stack", None)
    return interpreter is not None and interpreter() is not None


def _require_mode(mode: str, *, needed: dict[str, Any], foreign: dict[str, Any]) -> None:
    other = "adaptive" if mode == "constant" else "constant"
    for name, value in foreign.items():
        if value is not None:
            raise ValueError(_foreign(name, other))
    for name, value in needed.items():
        if value is None:
            call = ", ".join(f"{key}=..." for key in needed)
            raise ValueError(
                _text(
                    f"{name} is missing in {mode} mode",
                    "a number of at least 0",
                    f"Type JSAMRegularizer(model, {f'mode={mode!r}, ' if mode == 'adaptive' else ''}{call}).",
                )
            )
        if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
            raise ValueError(
                _text(f"{name} is {value!r}", "a finite number of at least 0", f"Type {name}=0.0 to switch it off.")
            )


def _foreign(name: str, mode: str) -> str:
    remedy = f"Type mode={mode!r}, or leave {name} out."
    return _text(f"{name} was given", f"{name} in {mode} mode only", remedy)


def _suggestion(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else ""


def _text(given: str, expected: str, remedy: str) -> str:
    return f"{given}. Expected {expected}. {remedy}".rstrip()
