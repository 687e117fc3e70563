r"""Per-example terms of stacked chains in closed form: batched matrix products, and no graph.

Axes are (group, member, example, unit): the members of a group share its examples. A chain has the layers
z_l = W_l a_{l-1} + c_l, a_l = phi_l(z_l), a_0 = x, and the pull-back of a cotangent u to the weights of layer l is the
rank-one matrix delta_l a_{l-1}^T with

    delta_L = u,   delta_l = (W_{l+1}^T delta_{l+1}) * phi_l'(z_l),

so that its squared norm is sum_l ||delta_l||^2 (||a_{l-1}||^2 + [bias]). At w + eps_i, eps_i = s_i g_i, the layers of
example i have W_l + s_i delta_l a_{l-1}^T: one inner product more on the way forward and one on the way back, so no
weights of single examples are ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from noisesam.gradients.losses import Loss, stable_norm
from noisesam.gradients.norms import row_norms
from noisesam.training.stacked_methods import OWN, PLAIN, Rule

PerExample = Float[Tensor, "groups members n units"]
Numbers = Float[Tensor, "groups members n"]


@dataclass(frozen=True)
class Examples:
    """The examples of every group, shared by its members."""

    inputs: Float[Tensor, "groups n features"]
    squares: Float[Tensor, "groups 1 n 1"]
    """||x||^2."""
    targets: Shaped[Tensor, "groups n ..."]

    @property
    def size(self) -> int:
        """Examples per group."""
        return self.inputs.shape[1]

    def rows(self, rows: slice) -> Examples:
        """Return consecutive examples of every group."""
        return Examples(self.inputs[:, rows], self.squares[:, :, rows], self.targets[:, rows])


@dataclass(frozen=True)
class Weights:
    """The layers of the stacked chains: weights (groups, members, outputs, inputs), biases (groups, members, outputs)."""

    matrices: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activations: tuple[tuple[nn.Module, ...], ...]

    def of(self, members: slice) -> Weights:
        """Return those of consecutive members."""
        return Weights(
            tuple(matrix[:, members] for matrix in self.matrices),
            tuple(None if bias is None else bias[:, members] for bias in self.biases),
            self.activations,
        )

    def tensors(self) -> list[Tensor]:
        """Return all of them."""
        return [*self.matrices, *(bias for bias in self.biases if bias is not None)]

    def plus(self, other: Weights, factor: Float[Tensor, "groups members"]) -> Weights:
        """Return self + factor * other."""
        scale = factor[..., None, None]
        return Weights(
            tuple(mine + scale * its for mine, its in zip(self.matrices, other.matrices, strict=True)),
            tuple(
                None if mine is None or its is None else mine + scale[..., 0] * its
                for mine, its in zip(self.biases, other.biases, strict=True)
            ),
            self.activations,
        )

    def norm(self) -> Float[Tensor, "groups members"]:
        """Return the l2 norm over all parameters of every member."""
        parts = [row_norms(tensor.flatten(2).flatten(0, 1)).view(tensor.shape[:2]) for tensor in self.tensors()]
        return torch.linalg.vector_norm(torch.stack(parts), dim=0)


@dataclass(frozen=True)
class OwnPerturbation:
    """eps_i of every example: in layer l the rank-one matrix scale_i delta_l a_{l-1}^T, and scale_i delta_l for a bias."""

    scale: Float[Tensor, "groups members n 1"]
    deltas: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """The chains evaluated at w or at a perturbation of it, with what a pull-back needs."""

    outputs: tuple[Tensor, ...]
    """z_l of every layer; the last are the logits."""
    hidden: tuple[Tensor, ...]
    """a_l of every layer but the last."""
    slopes: tuple[Tensor | None, ...]
    """phi_l'(z_l) of every layer but the last, None where there is no function."""

    @property
    def logits(self) -> PerExample:
        """The outputs of the last layer."""
        return self.outputs[-1]

    def of(self, members: slice, rows: slice = slice(None)) -> Point:
        """Return it for consecutive members and examples."""
        return Point(
            tuple(value[:, members, rows] for value in self.outputs),
            tuple(value[:, members, rows] for value in self.hidden),
            tuple(None if value is None else value[:, members, rows] for value in self.slopes),
        )


@dataclass(frozen=True)
class Terms:
    """J_i(theta_J)^T r_i(theta_L) of every example, as the factors of its rank-one matrices."""

    deltas: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    """The inputs of every layer but the first at theta_J."""
    residual: PerExample
    """r_i(theta_L)."""
    finite: Bool[Tensor, "groups members"]
    """Whether the losses at w and at the perturbed weights are finite."""

    def mean(self, weights: Weights, examples: Examples) -> Weights:
        """Return the mean over the examples: the gradient of the step."""
        share = 1 / examples.size
        first = torch.einsum("gmbo,gbi->gmoi", self.deltas[0] * share, examples.inputs)
        later = [(delta * share).mT @ inputs for delta, inputs in zip(self.deltas[1:], self.hidden, strict=True)]
        biases = [
            None if bias is None else delta.sum(2) * share for delta, bias in zip(self.deltas, weights.biases, strict=True)
        ]
        return Weights((first, *later), tuple(biases), weights.activations)

    def norms(self, weights: Weights, examples: Examples) -> Numbers:
        """Return the norm of every example's term."""
        size = self.residual.abs().amax(-1, keepdim=True)
        inverse = torch.where(size > 0, 1 / size, 0)  # a fitted example's squares would underflow in float32
        return (size * _norm([delta * inverse for delta in self.deltas], self.hidden, weights, examples)).squeeze(-1)


def evaluate(weights: Weights, examples: Examples, own: OwnPerturbation | None = None, at_w: Point | None = None) -> Point:
    """Evaluate the chains, at w + eps_i with an own perturbation; the first layer's outputs at w are not computed twice."""
    outputs: list[Tensor] = []
    hidden: list[Tensor] = []
    slopes: list[Tensor | None] = []
    last = len(weights.matrices) - 1
    for layer, (matrix, bias) in enumerate(zip(weights.matrices, weights.biases, strict=True)):
        if layer == 0:
            output = at_w.outputs[0] if at_w is not None else _first_layer(examples, matrix, bias)
        else:
            output = hidden[-1] @ matrix.mT
            output = output if bias is None else output + bias.unsqueeze(2)
        if own is not None:
            overlap = examples.squares if layer == 0 else (own.hidden[layer - 1] * hidden[-1]).sum(-1, keepdim=True)
            output = output + own.scale * (overlap + (bias is not None)) * own.deltas[layer]
        outputs.append(output)
        if layer < last:
            value, slope = _apply(weights.activations[layer], output)
            hidden.append(value)
            slopes.append(slope)
    return Point(tuple(outputs), tuple(hidden), tuple(slopes))


def pull_back(weights: Weights, point: Point, cotangent: PerExample, own: OwnPerturbation | None = None) -> tuple[Tensor, ...]:
    """Return delta_l of every layer for a cotangent of the logits."""
    deltas = [cotangent]
    for layer in range(len(weights.matrices) - 1, 0, -1):
        above = deltas[-1]
        delta = above @ weights.matrices[layer]
        if own is not None:
            delta = delta + own.scale * (own.deltas[layer] * above).sum(-1, keepdim=True) * own.hidden[layer - 1]
        slope = point.slopes[layer - 1]
        deltas.append(delta if slope is None else delta * slope)
    return tuple(reversed(deltas))


def residual_of(loss: Loss, point: Point, examples: Examples) -> tuple[PerExample, Bool[Tensor, "groups members"]]:
    """Return the closed-form residual of the loss, and whether all losses of a member are finite."""
    logits = point.logits
    groups, members, rows, _ = logits.shape
    flat = logits.reshape(groups * members * rows, -1)
    targets = examples.targets.unsqueeze(1)
    targets = targets.expand(groups, members, *targets.shape[2:]).reshape(len(flat), *targets.shape[3:])
    finite = loss(flat, targets).isfinite().view(groups, members, rows).all(2)
    return loss.residual(flat, targets).view(logits.shape), finite


def terms_of(
    rule: Rule, weights: Weights, point: Point, examples: Examples, loss: Loss, rho: Float[Tensor, "groups members"]
) -> Terms:
    """Return the step terms of members of one rule; `point` is their evaluation at w."""
    residual, finite = residual_of(loss, point, examples)
    if rule.eps == PLAIN:
        return Terms(pull_back(weights, point, residual), point.hidden, residual, finite)
    if rule.eps == OWN:
        return _own_terms(rule, weights, point, examples, loss, rho, (residual, finite))
    size = examples.size
    each = size if rule.examples_per_shard is None else rule.examples_per_shard
    shards = []
    for rows in (slice(start, start + each) for start in range(0, size, each)):
        part, cotangent = point.of(slice(None), rows), residual[:, :, rows]
        at_w = Terms(pull_back(weights, part, cotangent), part.hidden, cotangent, finite)
        shards.append(_shared_terms(rule, weights, at_w, examples.rows(rows), loss, rho))
    return join(shards, axis=2) if len(shards) > 1 else shards[0]


def join(parts: Sequence[Terms], axis: int) -> Terms:
    """Put terms together along the members (axis 1) or the examples (axis 2)."""
    if len(parts) == 1:
        return parts[0]
    finite = [part.finite for part in parts]
    return Terms(
        tuple(torch.cat(column, axis) for column in zip(*(part.deltas for part in parts), strict=True)),
        tuple(torch.cat(column, axis) for column in zip(*(part.hidden for part in parts), strict=True)),
        torch.cat([part.residual for part in parts], axis),
        torch.cat(finite, 1) if axis == 1 else torch.stack(finite).all(0),
    )


def _own_terms(
    rule: Rule,
    weights: Weights,
    point: Point,
    examples: Examples,
    loss: Loss,
    rho: Tensor,
    at_w: tuple[Tensor, Tensor],
) -> Terms:
    """One eps_i for every example: rho along the pull-back of the unit residual."""
    residual, finite = at_w
    size = stable_norm(residual.flatten(0, 2)).view(*residual.shape[:3], 1)
    deltas = pull_back(weights, point, residual / torch.where(size > 0, size, 1))
    gain = _norm(deltas, point.hidden, weights, examples)
    scale = torch.where(gain > 0, rho[..., None, None] / torch.where(gain > 0, gain, 1), 0)
    own = OwnPerturbation(scale, deltas, point.hidden)
    moved = evaluate(weights, examples, own, at_w=point)
    moved_residual, moved_finite = residual_of(loss, moved, examples)
    cotangent = moved_residual if rule.residual_perturbed else residual
    finite = finite & moved_finite
    if rule.jacobian_perturbed:
        return Terms(pull_back(weights, moved, cotangent, own), moved.hidden, cotangent, finite)
    return Terms(pull_back(weights, point, cotangent), point.hidden, cotangent, finite)


def _shared_terms(rule: Rule, weights: Weights, at_w: Terms, examples: Examples, loss: Loss, rho: Tensor) -> Terms:
    """One eps for all examples: rho along their mean gradient at w."""
    gradient = at_w.mean(weights, examples)
    norm = gradient.norm()
    if rule.normalize:
        rho = torch.where(norm > 0, rho / torch.where(norm > 0, norm, 1), 0)
    moved_weights = weights.plus(gradient, rho)
    moved = evaluate(moved_weights, examples)
    residual, finite = residual_of(loss, moved, examples)
    return Terms(pull_back(moved_weights, moved, residual), moved.hidden, residual, at_w.finite & norm.isfinite() & finite)


def _first_layer(examples: Examples, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + c of the first layer: one product for all members, who share the examples."""
    output = torch.einsum("gbi,gmoi->gmbo", examples.inputs, matrix)
    return output if bias is None else output + bias.unsqueeze(2)


def _norm(
    deltas: Sequence[Tensor], hidden: Sequence[Tensor], weights: Weights, examples: Examples
) -> Float[Tensor, "groups members n 1"]:
    """Return the square root of sum_l ||delta_l||^2 (||a_{l-1}||^2 + [bias])."""
    total: Tensor | float = 0.0
    for layer, (delta, bias) in enumerate(zip(deltas, weights.biases, strict=True)):
        squares = examples.squares if layer == 0 else hidden[layer - 1].square().sum(-1, keepdim=True)
        total = total + delta.square().sum(-1, keepdim=True) * (squares + (bias is not None))
    assert isinstance(total, Tensor)
    return total.sqrt()


def _apply(functions: Sequence[nn.Module], values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return phi(z) and its slope; autograd of an elementwise function's sum is its derivative."""
    if not functions:
        return values, None
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        output = leaf
        for function in functions:
            output = function(output)
        (slope,) = torch.autograd.grad(output.sum(), leaf)
    return output.detach(), slope
