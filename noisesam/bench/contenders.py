"""Who is timed: one entry per contender, and what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from noisesam.bench import outside, plain, vectorised
from noisesam.bench.case import RHO, Case, Step
from noisesam.errors import unknown_name
from noisesam.gradients import decompose
from noisesam.methods import make

CHUNK = 8
"""Examples per chunk of the chunked vmap forms."""


@dataclass(frozen=True)
class Contender:
    """A way to compute something of a batch.

    `computes` says what: "1-sam" (its gradient), "norms" (of the examples' gradients at w), or another name for what is
    compared with nothing.
    """

    name: str
    label: str
    computes: str
    prepare: Callable[[Case], Step]
    slow: bool = False
    """Slow contenders run fewer rounds."""
    alternative: Callable[[Case], Step] | None = None
    """Takes its place where it is refused or wrong."""
    alternative_words: str = ""
    ours: bool = False
    """A contender of noisesam: if it fails, its targets are missed."""


def _method(name: str, **options: Any) -> Callable[[Case], Step]:
    def prepare(case: Case) -> Step:
        radius = {} if name == "sgd" else {"rho": RHO}
        method = make(name, case.model, **radius, **options)

        def step() -> Tensor | None:
            with case.autocast():
                return method.backward(case.inputs, case.targets).gradient_norms

        return step

    return prepare


def _probe(case: Case) -> Step:
    def step() -> Tensor:
        with case.autocast():
            return decompose(case.model, case.inputs, case.targets).gradient_norm

    return step


BASE, SAM, ONE_SAM, LOOP, BEST_VMAP = "torch-sgd", "torch-sam", "1-sam", "loop", "best-vmap"
VMAP = ("vmap-nested", "vmap-nested-8", "vmap-split", "vmap-split-8")
"""The forms of which the fastest is the best vmap."""

CONTENDERS: dict[str, Contender] = {
    one.name: one
    for one in (
        Contender(BASE, "SGD, plain torch", "sgd", plain.sgd),
        Contender(SAM, "batch SAM, plain torch", "sam", plain.batch_sam),
        Contender("sgd", "noisesam sgd", "sgd", _method("sgd"), ours=True),
        Contender("sam", "noisesam sam", "sam", _method("sam"), ours=True),
        Contender(ONE_SAM, "noisesam 1-sam", "1-sam", _method("1-sam"), ours=True),
        Contender("l-sam", "noisesam l-sam", "l-sam", _method("l-sam"), ours=True),
        Contender("j-sam", "noisesam j-sam", "j-sam", _method("j-sam"), ours=True),
        Contender("norms", "noisesam norms only", "norms", _probe, ours=True),
        Contender("sgd-norms", "noisesam sgd + norms", "norms", _method("sgd", gradient_norms=True), ours=True),
        Contender(LOOP, "1-SAM one by one", "1-sam", plain.one_by_one, slow=True),
        Contender(VMAP[0], "1-SAM vmap, nested", "1-sam", vectorised.nested, slow=True),
        Contender(VMAP[1], "1-SAM vmap, nested, 8", "1-sam", partial(vectorised.nested, chunk=CHUNK), slow=True),
        Contender(VMAP[2], "1-SAM vmap, split", "1-sam", vectorised.materialised, slow=True),
        Contender(VMAP[3], "1-SAM vmap, split, 8", "1-sam", partial(vectorised.materialised, chunk=CHUNK), slow=True),
        Contender(
            "opacus-gradients",
            "Opacus gradients",
            "norms",
            outside.opacus_gradients,
            slow=True,
            alternative=partial(outside.opacus_gradients, functorch=True),
            alternative_words="force_functorch=True",
        ),
        Contender(
            "opacus-ghost",
            "Opacus ghost norms",
            "norms",
            outside.opacus_ghost,
            slow=True,
            alternative=partial(outside.opacus_ghost, functorch=True),
            alternative_words="force_functorch=True",
        ),
    )
}


def chosen_contenders(names: list[str] | None) -> list[Contender]:
    """Return the contenders of these names, all without names; SGD is always among them.

    Example:
        >>> [one.name for one in chosen_contenders(["1-sam"])]
        ['torch-sgd', '1-sam']
    """
    for name in names or []:
        if name not in CONTENDERS:
            raise unknown_name("contender", name, CONTENDERS)
    return [one for one in CONTENDERS.values() if names is None or one.name in (BASE, *names)]
