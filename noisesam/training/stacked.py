"""Several small models trained at once: their weights are stacked, and one step moves all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError
from noisesam.methods.base import Method, NonFiniteLossError
from noisesam.training.batches import BatchOrder
from noisesam.training.stacked_chain import read_chains, stack_weights
from noisesam.training.stacked_inputs import rules_of, slices_of, stack_examples, take_rows
from noisesam.training.stacked_methods import common_loss
from noisesam.training.stacked_terms import Examples, Point, Terms, Weights, evaluate, join, pull_back, residual_of, terms_of

Numbers = Float[Tensor, "groups members n"]
Observer = Callable[[int, "Stack"], None]
"""Called with the number of steps taken and the stack."""


def train_stacked(
    methods: Sequence[Sequence[Method]],
    data: Sequence[NoisyDataset],
    *,
    steps: int,
    lr: float | Sequence[float],
    orders: Sequence[BatchOrder] | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    observe: Observer | None = None,
) -> None:
    r"""Train many small models together, each exactly as if it were trained alone.

    Row g of `methods` holds the models that are trained on `data[g]`, for example all settings of seed g. The models are
    trained in place, and up to rounding they end where the ordinary loop of each of them ends:

        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        for step in range(steps):
            rows = orders[g].batch(step)
            optimizer.zero_grad()
            method.backward(data[g].inputs[rows], data[g].labels[rows])
            optimizer.step()

    A model must be a chain of linear layers with elementwise functions between them. There the term of every example,
    J_i(theta_J)^T r_i(theta_L), is a rank-one matrix per layer in closed form, so that a step of all models is a few batched
    matrix products.

    Args:
        methods: One row of methods per data set, each with a model of its own; models have one architecture, a column has
            one kind of method in all rows, and rho may differ everywhere. SGD, SAM, m-SAM, 1-SAM, L-SAM and J-SAM.
        data: One data set per row, of equal sizes.
        steps: Optimizer steps.
        lr: Learning rate, or one per column.
        orders: The batches of every data set; None takes all examples in every step.
        momentum: Of torch.optim.SGD.
        weight_decay: Of torch.optim.SGD, applied at w.
        observe: Called before every step and once after the last.

    Raises:
        InputError: A model or a method cannot be stacked, or the arguments do not fit each other.
        FloatingPointError: A loss is not finite; all models are left as they were before the training.

    Example:
        >>> from noisesam import data, methods, models
        >>> def row(seed):
        ...     model = lambda: models.make("linear", input_shape=(20,), classes=1, seed=seed)
        ...     return [methods.make("1-sam", model(), loss="logistic", rho=rho) for rho in (0.1, 0.3)]
        >>> stack = [row(0), row(1)]
        >>> sets = [data.gaussian(30, 20, signal=4.0, noise_std=1.0, seed=seed) for seed in (0, 1)]
        >>> train_stacked(stack, sets, steps=5, lr=0.1)
        >>> stack[1][0].steps
        5
    """
    stack = Stack(methods, data)
    rates = _rates(lr, len(methods[0]))
    _check(stack, steps, orders, momentum, weight_decay)
    optimizer = _SGD(stack, rates, momentum, weight_decay)
    with torch.no_grad():
        for step in range(steps):
            if observe is not None:
                observe(step, stack)
            optimizer.step(stack._gradient(None if orders is None else [order.batch(step) for order in orders], step))
        if observe is not None:
            observe(steps, stack)
    stack._write_back(steps)


class Stack:
    """The models of `train_stacked` while they are trained: what an observer can ask for.

    Axes are (group, member): row and column of `methods`. Everything is measured at the present weights, on all examples.
    """

    def __init__(self, methods: Sequence[Sequence[Method]], data: Sequence[NoisyDataset]) -> None:
        self.methods, self.data = [list(row) for row in methods], list(data)
        rules = rules_of(self.methods, self.data)
        models = [[method.model for method in row] for row in self.methods]
        every = [model for row in models for model in row]
        if len({id(model) for model in every}) < len(every):
            raise InputError(
                "One model in several places of a stack",
                expected="a model of its own for every method",
                remedy="Make one model per method, or copy it with copy.deepcopy.",
            )
        self.loss = common_loss([method for row in self.methods for method in row])
        chain = read_chains(every)
        # Members of one rule lie side by side inside, so that they are slices; outside everybody keeps their place.
        places = sorted(range(len(rules)), key=lambda column: repr(rules[column]))
        self._sort = None if places == [*range(len(places))] else torch.tensor(places)
        self._unsort = None if self._sort is None else torch.argsort(self._sort)
        self._slices = slices_of([rules[column] for column in places])
        self._names = chain.weights, chain.biases
        named = {name: self._sorted(value) for name, value in stack_weights(models, chain).items()}
        self._weights = Weights(
            tuple(named[name] for name in chain.weights),
            tuple(None if name is None else named[name] for name in chain.biases),
            chain.activations,
        )
        radii = torch.tensor([[method.rho or 0.0 for method in row] for row in self.methods], dtype=torch.float64)
        self._rho = self._sorted(radii.to(self._weights.matrices[0]))
        self._examples = stack_examples(self.data, self._weights.matrices[0], flattens=chain.flattens)
        self._at_w: Point | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The present weights by parameter name, (groups, members, *shape); not to be changed."""
        pairs = [
            *zip(self._names[0], self._weights.matrices, strict=True),
            *zip(self._names[1], self._weights.biases, strict=True),
        ]
        return {name: self._unsorted(value) for name, value in pairs if name is not None and value is not None}

    def logits(self) -> Float[Tensor, "groups members n classes"]:
        """Return the logits of all examples."""
        return self._unsorted(self._point().logits)

    def gradient_norm(self) -> Numbers:
        """Return ||J_i(w)^T r_i(w)||, the norm of every example's plain gradient."""
        point = self._point()
        residual, finite = residual_of(self.loss, point, self._examples)
        plain = Terms(pull_back(self._weights, point, residual), point.hidden, residual, finite)
        return self._unsorted(plain.norms(self._weights, self._examples))

    def step_gradient_norm(self) -> Numbers:
        """Return ||J_i(theta_J)^T r_i(theta_L)||, the norm of every example's step term by the model's own method."""
        return self._unsorted(self._terms(self._point(), self._examples).norms(self._weights, self._examples))

    def _point(self) -> Point:
        """Return the models at their present weights on all examples."""
        if self._at_w is None:
            self._at_w = evaluate(self._weights, self._examples)
        return self._at_w

    def _terms(self, point: Point, examples: Examples) -> Terms:
        parts = [
            terms_of(rule, self._weights.of(members), point.of(members), examples, self.loss, self._rho[:, members])
            for rule, members in self._slices
        ]
        return join(parts, axis=1)

    def _gradient(self, rows: Sequence[np.ndarray] | None, step: int) -> Weights:
        """Return the gradient of every member's step on these rows of every group's examples, None for all."""
        if rows is None:
            examples, point = self._examples, self._point()
        else:
            examples = take_rows(self._examples, rows)
            point = evaluate(self._weights, examples)
        terms = self._terms(point, examples)
        if not bool(terms.finite.all()):
            raise self._non_finite(terms.finite, step)
        self._at_w = None
        return terms.mean(self._weights, examples)

    def _write_back(self, steps: int) -> None:
        """Give every model its weights."""
        with torch.no_grad():
            for name, value in self.weights.items():
                for group, row in enumerate(self.methods):
                    for member, method in enumerate(row):
                        method.model.get_parameter(name).copy_(value[group, member])
        for method in (method for row in self.methods for method in row):
            method.steps += steps

    def _non_finite(self, finite: Tensor, step: int) -> NonFiniteLossError:
        places = (~self._unsorted(finite)).nonzero().tolist()
        names = [self.methods[group][member] for group, member in places[:3]]
        shown = ", ".join(
            f"{method.name}{'' if method.rho is None else f' with rho={method.rho:g}'} in row {group}"
            for method, (group, _) in zip(names, places, strict=False)
        )
        return NonFiniteLossError(
            f"The loss of {len(places)} model(s) of the stack is not finite at step {step}: {shown}"
            + (", ..." if len(places) > len(names) else ""),
            expected="finite losses",
            remedy="Lower their learning rate or rho, or leave them out of the stack.",
        )

    def _sorted(self, value: Tensor) -> Tensor:
        return value if self._sort is None else value.index_select(1, self._sort.to(value.device))

    def _unsorted(self, value: Tensor) -> Tensor:
        return value if self._unsort is None else value.index_select(1, self._unsort.to(value.device))


class _SGD:
    """torch.optim.SGD on stacked weights, with one learning rate per member."""

    def __init__(self, stack: Stack, rates: Sequence[float], momentum: float, weight_decay: float) -> None:
        self.stack, self.momentum, self.weight_decay = stack, momentum, weight_decay
        first = stack._weights.matrices[0]
        per_member = torch.tensor(rates, dtype=torch.float64, device=first.device).to(first.dtype)
        self.rates = stack._sorted(per_member.unsqueeze(0)).squeeze(0)
        self.velocity: list[Tensor] = []

    def step(self, gradient: Weights) -> None:
        """Move the weights of the stack in place."""
        weights, moves = self.stack._weights.tensors(), gradient.tensors()
        if self.weight_decay:
            moves = [move.add_(weight, alpha=self.weight_decay) for move, weight in zip(moves, weights, strict=True)]
        if self.momentum:
            # The first velocity is the gradient itself, as in torch.
            self.velocity = (
                [v.mul_(self.momentum).add_(move) for v, move in zip(self.velocity, moves, strict=True)]
                if self.velocity
                else [move.clone() for move in moves]
            )
            moves = self.velocity
        for weight, move in zip(weights, moves, strict=True):
            rates = self.rates.view(-1, *[1] * (weight.dim() - 2))
            weight.addcmul_(move, rates.expand_as(move[0]), value=-1)


def _rates(lr: float | Sequence[float], columns: int) -> list[float]:
    rates = [float(lr)] * columns if isinstance(lr, (int, float)) else [float(rate) for rate in lr]
    if len(rates) != columns:
        raise InputError(
            f"{len(rates)} learning rates for {columns} columns of methods",
            expected="one learning rate, or one per column",
        )
    for rate in rates:
        _check_number("lr", rate)
    return rates


def _check(stack: Stack, steps: int, orders: Sequence[BatchOrder] | None, momentum: float, weight_decay: float) -> None:
    """Refuse what does not fit, before anything is trained."""
    if steps < 0:
        raise InputError(f"steps={steps}", expected="0 or more")
    _check_number("momentum", momentum)
    _check_number("weight_decay", weight_decay)
    if orders is None:
        return
    sizes = {(order.size, order.batch_size) for order in orders}
    examples = stack._examples.size
    if len(orders) != len(stack.data) or len(sizes) != 1 or next(iter(sizes))[0] != examples:
        raise InputError(
            f"{len(orders)} batch orders with the (examples, batch size) {sorted(sizes)}",
            expected=f"{len(stack.data)}, one per data set, of {examples} examples each and of one batch size",
            remedy="Make each with BatchOrder(size=len(dataset), batch_size=..., seed=...).",
        )


def _check_number(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value!r}", expected="a finite number of at least 0")
