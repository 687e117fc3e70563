"""Which methods can be trained as a stack, as choices in the one equation J_i(theta_J)^T r_i(theta_L)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noisesam.errors import InputError
from noisesam.gradients.losses import Loss
from noisesam.methods.base import Method
from noisesam.methods.m_sam import MSAM
from noisesam.methods.per_example import JSAM, LSAM, OneSAM, PerExampleMethod
from noisesam.methods.sam import SAM
from noisesam.methods.sgd import SGD

STACKABLE: tuple[type[Method], ...] = (SGD, SAM, MSAM, OneSAM, LSAM, JSAM)

PLAIN, OWN, SHARED = "plain", "own", "shared"


@dataclass(frozen=True)
class Rule:
    """Where the Jacobian and the residual of a step are taken, and who shares eps; rho is not part of it.

    Attributes:
        eps: "plain" (none), "own" (one for every example) or "shared" (one for every shard).
        jacobian_perturbed: For an own eps.
        residual_perturbed: For an own eps.
        examples_per_shard: For a shared eps; None for the whole batch.
        normalize: For a shared eps: False for eps = rho g.
    """

    eps: str
    jacobian_perturbed: bool = False
    residual_perturbed: bool = False
    examples_per_shard: int | None = None
    normalize: bool = True


def read_rule(method: Method) -> Rule:
    """Read a method as a rule.

    Raises:
        InputError: The method is none of STACKABLE, or has an option that a stack does not carry out.

    Example:
        >>> import torch
        >>> read_rule(LSAM(torch.nn.Linear(2, 2), rho=0.1)).residual_perturbed
        True
    """
    if type(method) not in STACKABLE:
        raise _refused(f"The method {method.name!r}", "one of: " + ", ".join(kind.name for kind in STACKABLE))
    if method.parameter_groups:
        raise _refused(f"{method.name!r} with parameter_groups", "one rho for all parameters of a model")
    if isinstance(method, PerExampleMethod):
        return Rule(OWN, method.jacobian_perturbed, method.residual_perturbed)
    if isinstance(method, SAM):
        if method.weight_decay:
            raise _refused(f"{method.name!r} with weight_decay={method.weight_decay:g}", "weight decay in the update alone")
        if method.examples_per_shard == 1:
            return Rule(OWN, True, True)
        return Rule(SHARED, examples_per_shard=method.examples_per_shard, normalize=method.normalize)
    return Rule(PLAIN)


def common_loss(methods: Sequence[Method]) -> Loss:
    """Return the loss that all methods have.

    Raises:
        InputError: They have several.
    """
    first = methods[0].loss
    for method in methods[1:]:
        other = method.loss
        if not _same(first, other):
            raise InputError(
                f"Methods with the losses {first.name!r} and {other.name!r} in one stack",
                expected="one loss with the same parameters for all of them",
                remedy="Train the methods of each loss as a stack of their own.",
            )
    return first


def _same(first: Loss, second: Loss) -> bool:
    """Say whether two losses are of one kind with the same parameters."""
    mine, its = vars(first), vars(second)
    return type(first) is type(second) and mine.keys() == its.keys() and all(_equal(mine[key], its[key]) for key in mine)


def _equal(first: object, second: object) -> bool:
    return first is second or (isinstance(first, (bool, int, float, str)) and first == second)


def _refused(given: str, expected: str) -> InputError:
    return InputError(
        f"{given} cannot be stacked", expected=expected, remedy="Train it alone with Method.backward and an optimizer."
    )
