"""Per-example losses and their residuals (logit scales), closed form where the loss has a name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from noisesam.errors import InputError

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]

LABEL_TYPES = (torch.int64, torch.int32)
"""What torch takes as positions."""

_RANGES: Any = WeakTensorKeyDictionary()
"""Labels on an accelerator, with their version and range."""


def accurate(logits: Tensor) -> Tensor:
    """Return the logits in at least float32: losses and residuals are never computed in half precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class Loss(ABC):
    """A loss of one example and its residual r = dl/df, the vector that the network Jacobian pulls back.

    Called with logits (n, ...) and targets (n, ...), a loss returns n values in nats, one per example.
    """

    name: str

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example."""

    @abstractmethod
    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return dl_i/df_i, of the shape of the logits, detached."""

    @abstractmethod
    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse logits and targets that do not fit together."""


class CrossEntropy(Loss):
    """Softmax cross-entropy l = -log softmax(f)_y with residual r = softmax(f) - onehot(y).

    The residual's entry of the observed class is minus the sum of the others. Autograd forms it as p_y - 1, which loses
    all digits where the example is fitted: exactly zero at margin 20 in float32, a relative error of 1e-3 at margin 30 in
    float64.
    """

    name = "cross_entropy"

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example."""
        self.check(logits, targets)
        return softmax_cross_entropy(logits, targets)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return softmax(f) - onehot(y), accurate at any margin."""
        self.check(logits, targets)
        return softmax_residual(logits, targets)

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse anything but (n, classes) logits with class labels of shape (n,)."""
        check_class_logits(logits, targets, self.name)


class Logistic(Loss):
    """Binary logistic loss l = -log sigmoid(t f), t = 2y - 1, with residual -t sigmoid(-t f); one logit per example."""

    name = "logistic"

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example."""
        return -torch.nn.functional.logsigmoid(self._signs(logits, targets) * accurate(logits)).reshape(-1)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return -t sigmoid(-t f), of the logits' shape."""
        signs = self._signs(logits, targets)
        return -signs * torch.sigmoid(-signs * accurate(logits.detach()))

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse anything but one logit per example with labels 0 and 1."""
        if logits.numel() != logits.shape[0] or logits.dim() > 2:
            raise InputError(
                f"Logits of shape {tuple(logits.shape)} for the loss 'logistic'",
                expected="one logit per example: shape (n,) or (n, 1)",
                remedy="Give the model one output (classes=1) or use loss='cross_entropy'.",
            )
        check_labels(targets, logits.shape[0], 2)

    def _signs(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.check(logits, targets)
        return (2 * targets - 1).to(accurate(logits).dtype).reshape(logits.shape)


class SquaredError(Loss):
    """Half the squared error l = 1/2 ||f - y||^2 with residual f - y; class labels become one-hot vectors."""

    name = "mse"

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example."""
        return 0.5 * (accurate(logits) - self._values(logits, targets)).reshape(len(logits), -1).square().sum(1)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return f - y."""
        return accurate(logits.detach()) - self._values(logits, targets)

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse targets that are neither class labels nor values of the logits' shape."""
        self._values(logits, targets)

    def _values(self, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = accurate(logits).dtype
        if targets.shape == logits.shape:
            return targets.to(dtype)
        if logits.dim() == 2 and logits.shape[1] == 1 and targets.shape == logits.shape[:1]:
            return targets.to(dtype).unsqueeze(1)
        if logits.dim() == 2 and not targets.is_floating_point():
            check_labels(targets, logits.shape[0], logits.shape[1])
            return torch.nn.functional.one_hot(targets, logits.shape[1]).to(dtype)
        raise InputError(
            f"Targets of shape {tuple(targets.shape)} and dtype {targets.dtype} with outputs of shape {tuple(logits.shape)}",
            expected="class labels of shape (n,), or values of the outputs' shape",
            remedy="Reshape the targets to the outputs' shape.",
        )


class CallableLoss(Loss):
    """A user's (logits, targets) -> losses (n,); the residual is taken by autograd through the loss alone."""

    def __init__(self, function: PerExampleLoss) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self._separates = False

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example, after a check of its shape."""
        losses = self.function(accurate(logits), targets)
        if not isinstance(losses, Tensor) or losses.shape != logits.shape[:1]:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise InputError(
                f"The loss {self.name!r} returned {shape} for {logits.shape[0]} examples",
                expected=f"one loss per example, shape ({logits.shape[0]},)",
                remedy="Leave the reduction to noisesam: reduction='none', then average over everything but the first axis.",
            )
        return losses

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of the summed losses at the logits."""
        with torch.enable_grad():
            leaf = accurate(logits.detach()).requires_grad_()
            losses = self(leaf, targets)
            if not losses.requires_grad:
                raise InputError(
                    f"The loss {self.name!r} has no gradient at the logits",
                    expected="losses computed from the logits by differentiable operations",
                    remedy="Leave out .detach(), .item(), argmax and torch.no_grad() between the logits and the loss.",
                )
            if len(leaf) > 1:
                if not self._separates:
                    self._refuse_mixing(losses, leaf, targets)
                elif self._differs_in_halves(losses.detach(), leaf.detach(), targets):
                    raise self._mixed()
            return torch.autograd.grad(losses.sum(), leaf)[0].detach()

    def _refuse_mixing(self, losses: Tensor, leaf: Tensor, targets: Tensor) -> None:
        """Look once whether an example's loss depends on others' logits or targets, be it by numbers without a gradient.

        And whether it depends on a weight: that would get no gradient, since the loss is asked for that at the logits alone.
        """
        if any(variable is not leaf for variable in _leaves(losses)):
            raise InputError(
                f"The loss {self.name!r} depends on a trainable tensor beside the logits",
                expected="losses of logits and targets alone: no other gradient is taken through them",
                remedy="Let the model apply it to its logits (a temperature, say), or detach it.",
            )
        (first,) = torch.autograd.grad(losses[0], leaf, retain_graph=True)
        known = first[1:].isfinite()  # a loss without a finite gradient tells nothing, and is refused as such
        mixes = bool(((first[1:] != 0) & known).any())
        for row, own in enumerate(losses.detach()):
            copies = torch.full((len(leaf),), row, device=leaf.device)
            among_copies = self(leaf.detach()[copies], targets[copies])[row].detach()
            mixes |= bool(_apart(among_copies, own))
        if mixes:
            raise self._mixed()
        self._separates = bool(known.all())

    def _differs_in_halves(self, losses: Tensor, logits: Tensor, targets: Tensor) -> bool:
        """Whether some loss is another when every second example is left out: a count of labels, say, may come to differ."""
        with torch.no_grad():
            return any(bool(_apart(self(logits[k::2], targets[k::2]), losses[k::2]).any()) for k in (0, 1))

    def _mixed(self) -> InputError:
        return InputError(
            f"The loss {self.name!r} mixes the examples of a batch: that of one depends on the logits of others",
            expected="a loss i that depends on logits i alone: a per-example gradient is not defined otherwise",
            remedy="Remove what computes over the example axis (centring, ranking, normalising over the batch).",
        )

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse targets whose first axis is not the logits'."""
        if targets.shape[:1] != logits.shape[:1]:
            raise _wrong_count(targets, logits.shape[0])


def _apart(losses: Tensor, others: Tensor) -> Tensor:
    """Whether losses differ by more than a thousand roundings."""
    return (losses - others).abs() > 1000 * torch.finfo(others.dtype).eps * others.abs()


def _leaves(output: Tensor) -> list[Tensor]:
    """Return the leaves of the graph with a gradient."""
    waiting, seen, found = [output.grad_fn], set[Any](), list[Tensor]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.append(variable)
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return found


def names() -> tuple[str, ...]:
    """Return the names of the losses that have a closed-form residual."""
    from noisesam.gradients.loss_names import known_names

    return known_names()


def resolve(loss: str | PerExampleLoss | Loss) -> Loss:
    """Return the loss of that name, or wrap a callable (logits, targets) -> per-example losses.

    Args:
        loss: One of `names()`, with its parameters behind it where it has some, as "generalised_cross_entropy(q=0.5)"; or a
            callable that returns one loss per example, shape (n,).

    Returns:
        The loss, with its residual.

    Raises:
        InputError: The name or a parameter is unknown, or the value is neither a name nor callable.

    Example:
        >>> import torch
        >>> loss = resolve("cross_entropy")
        >>> loss.residual(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([[ 0.5000, -0.5000]])
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        from noisesam.gradients.loss_names import named_loss

        return named_loss(loss)
    if callable(loss):
        return CallableLoss(loss)
    raise InputError(
        f"A loss of type {type(loss).__name__}",
        expected="a name or a callable (logits, targets) -> losses (n,)",
        remedy="Type loss='cross_entropy', or pass a function.",
    )


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
    """Return -log softmax(f)_y of checked logits and labels, accurate at any margin."""
    logits = accurate(logits)
    observed = targets.unsqueeze(1)
    # log1p of the other classes' odds: -log_softmax is zero once p_y rounds to one. Past 40 softplus is linear.
    differences = (logits - logits.gather(1, observed)).scatter(1, observed, -torch.inf)
    return torch.nn.functional.softplus(torch.logsumexp(differences, 1), threshold=40.0)


def softmax_residual(logits: Tensor, targets: Tensor) -> Tensor:
    """Return softmax(f) - onehot(y) of checked logits and labels, detached, accurate at any margin."""
    probabilities = accurate(logits.detach()).softmax(1)
    observed = targets.unsqueeze(1)
    others = probabilities.scatter(1, observed, 0.0)
    return others.scatter(1, observed, -others.sum(1, keepdim=True))


def check_class_logits(logits: Tensor, targets: Tensor, loss: str) -> None:
    """Refuse anything but (n, classes) logits with class labels of shape (n,)."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(
            f"Logits of shape {tuple(logits.shape)} for the loss {loss!r}",
            expected="shape (n, classes) with at least two classes",
            remedy="For one logit use loss='logistic'; for other outputs pass a callable (logits, targets) -> losses (n,).",
        )
    check_labels(targets, logits.shape[0], logits.shape[1])


def check_labels(targets: Tensor, examples: int, classes: int) -> None:
    """Refuse labels that are not integers of shape (examples,) in 0..classes-1."""
    if targets.shape != (examples,):
        raise _wrong_count(targets, examples)
    if targets.dtype not in LABEL_TYPES:
        raise InputError(
            f"Labels of dtype {targets.dtype}",
            expected="integer class labels, int64 or int32",
            remedy="Convert them with targets.long().",
        )
    if not examples:
        return
    lowest, highest = label_range(targets)
    if lowest < 0 or highest >= classes:
        wrong = ((targets < 0) | (targets >= classes)).nonzero().flatten()
        rows = ", ".join(str(int(row)) for row in wrong[:5])
        raise InputError(
            f"Labels out of range at {len(wrong)} row(s), the first: {rows} (label {int(targets[wrong[0]])})",
            expected=f"labels from 0 to {classes - 1}",
            remedy="Check the number of classes of the model against the data.",
        )


def label_range(targets: Tensor) -> tuple[int, int]:
    """Return the lowest and the highest label; on an accelerator, where a look waits for the device, it is remembered.

    On a CPU a look costs little, and numpy may write past the version that tells of changes. Elsewhere `.data` may, unseen.
    """
    remembered = _RANGES.get(targets) if _remembers(targets) else None
    if remembered is not None and remembered[0] == targets._version:
        return remembered[1]
    lowest, highest = torch.stack(torch.aminmax(targets)).cpu().tolist()
    if _remembers(targets):
        _RANGES[targets] = (targets._version, (lowest, highest))
    return lowest, highest


def remember_label_range(targets: Tensor) -> None:
    """Look at the labels of a batch before it is cut into parts, where every look waits for the device."""
    if _remembers(targets) and targets.dtype in LABEL_TYPES and targets.numel():
        label_range(targets)


def inherit_label_range(part: Tensor, whole: Tensor) -> None:
    """Let some of the labels of a batch pass for in the range of all, where that is known."""
    remembered = _RANGES.get(whole) if _remembers(whole) and _remembers(part) else None
    if remembered is not None and remembered[0] == whole._version:
        _RANGES[part] = (part._version, remembered[1])


def _remembers(targets: Tensor) -> bool:
    return targets.device.type != "cpu" and not targets.is_inference()


def _wrong_count(targets: Tensor, examples: int) -> InputError:
    return InputError(
        f"Targets of shape {tuple(targets.shape)} for {examples} examples",
        expected=f"shape ({examples},)",
        remedy="Inputs and targets must come from the same batch, the first axis being the example.",
    )


def stable_norm(rows: Tensor) -> Float[Tensor, " n"]:
    """Return the l2 norm of every row without underflow of the squares: max |r| times the norm of r / max |r|.

    Example:
        >>> import torch
        >>> stable_norm(torch.tensor([[3e-30, 4e-30]]))
        tensor([5.0000e-30])
    """
    rows = accurate(rows).reshape(len(rows), -1)
    largest = rows.abs().amax(1, keepdim=True)
    scaled = torch.where(largest > 0, rows / largest, rows)
    return largest.squeeze(1) * torch.linalg.vector_norm(scaled, dim=1)
