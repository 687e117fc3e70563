"""The example axis is proven, not assumed.

A fast engine must know which axis of every intermediate tensor is the example. Before it is used on a model (and again for
every new batch shape, train or eval state and set of trainable parameters) six things are checked on the batch at hand:

* output i does not depend on input j, for any two examples (`mixing`);
* an example run alone gives the output it has in the batch;
* its row of the batch has, by plain autograd, the per-parameter gradient norms that the engine finds for it;
* the sum over all examples, each with a weight of its own, has the direction that plain autograd finds;
* an example alone, with its own weights w + eps_i, has the output that the engine finds for it in the batch;
* nor does the sum differ where the examples' data are exchanged among them (`other_data`).

A use of a parameter whose gradient is next to nothing for these examples is compared for the example where it is largest, and
where it is so for all of them (behind a scale that starts small) a step away. What is silent there, too, the verdict says.

Dropout is switched off while this is checked, since the masks of a batch and of an example alone differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy
import torch
from torch import nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, batch_size, devices_of, take
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.comparison import compare, outputs_alone
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.first_pass import fill_tables
from noisesam.gradients.engine.guess import Guess
from noisesam.gradients.engine.mixing import refuse_mixing
from noisesam.gradients.engine.other_data import differs_on_other_data
from noisesam.gradients.engine.terms import WithoutDropout
from noisesam.gradients.engine.twins import twins_of
from noisesam.gradients.engine.unsupported import FAILURES, UnsupportedParameterUse
from noisesam.gradients.engine.verdict import Comparison, Verdict
from noisesam.gradients.module_state import modules_kept
from noisesam.gradients.moved_weights import movable
from noisesam.gradients.plain import kept_view, next_number, whole_norm
from noisesam.gradients.randomness import RandomState, undisturbed
from noisesam.gradients.recomputation import evaluate

STEP = 0.1
"""That step, as a share of the root mean square of each parameter, or of all together where that is more: gates start small."""


def prove(engine: FastEngine, inputs: Inputs, rows: Iterable[int] = ()) -> Verdict | None:
    """Check the engine and the model on this batch.

    Args:
        engine: The fast engine, whose guess of the layout is set to the one that holds.
        inputs: The batch.
        rows: Examples that are compared beside the first, the middle and the last.

    Returns:
        The verdict; None where the outputs are not finite, so that nothing can be concluded.

    Raises:
        InputError: The model mixes the examples of a batch, does not run on one alone, writes to its inputs, draws with NumPy's
            generator, or has a reverse pass that is not linear.
    """
    model = engine.model
    fill_tables(model, inputs)
    with undisturbed(model), torch.enable_grad(), WithoutDropout():
        torch.clear_autocast_cache()  # a cast from before is no copy that the model keeps
        size, start = batch_size(inputs), next_number()
        state = RandomState.capture(devices_of(model))  # a model that draws by Python's generator alone repeats itself with it
        versions = [(value, value._version) for value in tensors_in([inputs])]
        with _numpy_refused(model, inputs):
            output = evaluate(model, inputs)
        if any(value._version != version for value, version in versions):
            raise InputError(
                f"{type(model).__name__} writes to its inputs",
                expected="inputs that a second pass of the step meets as they were",
                remedy="Let forward work on a copy, as with x = x - 0.5 in place of x.sub_(0.5).",
            )
        view = kept_view(model, engine.parameters, output, start)
        output = output.detach()  # one graph at a time is held
        compared = sorted({0, size // 2, size - 1, *rows})
        alone = outputs_alone(engine, inputs, compared, state)
        refuse_mixing(model, inputs, output, alone, state)
        if view is not None:
            return Verdict(False, f"it uses {view!r} by way of a view that was made before the step")
        rows_of_batch = twins_of(engine, inputs, alone)
        _refuse_gradients_on_the_way(model)
        kept = bool(rows_of_batch.total)
        failed = None
        for guess in Guess:
            if guess is Guess.EXAMPLES_IN_CONSTANTS and not engine.constants_in_doubt:
                break
            engine.guess = guess
            if kept and not rows_of_batch.total:
                rows_of_batch = twins_of(engine, inputs, alone)
            found = compare(engine, inputs, rows_of_batch)
            if found is None:
                return None
            reason = "" if found.verdict.fast else found.verdict.reason
            reason = reason or _sized_by_data_among_more(engine, inputs)
            reason = reason or differs_on_other_data(engine, inputs, found.verdict.trace)
            if not reason:
                return _compare_silent_uses(engine, inputs, found, compared)
            failed = Verdict(False, reason)
        return failed


def _sized_by_data_among_more(engine: FastEngine, inputs: Inputs) -> str:
    """Return that the data decide where rows belong if that shows with every example twice, "" if not.

    An axis of as many experts as there are examples looks like theirs; among twice as many it does not.
    """
    size = batch_size(inputs)
    if size == 1:
        return ""  # all rows are of one example
    twice = take(inputs, torch.arange(size, device=tensors_in([inputs])[0].device).repeat(2))
    more = FastEngine(engine.model, engine.parameters, guess=engine.guess)
    more.looks_for_unheard = True
    for gradients in (False, True):  # one layer at a time is held where there are none; but a model may ask for them
        broken_off = False
        try:
            with torch.set_grad_enabled(gradients), modules_kept(engine.model):
                more.at(twice)
        except torch.OutOfMemoryError:
            raise
        except (UnsupportedParameterUse, *FAILURES):
            broken_off = True  # what was seen before holds
        finally:
            torch.clear_autocast_cache()  # a cast that was made without gradients would be met again with them
        if not more.sized_by_data and not broken_off:
            break
    return more.sized_by_data


def _compare_silent_uses(engine: FastEngine, inputs: Inputs, found: Comparison, rows: list[int]) -> Verdict:
    """Compare the uses that are zero for these examples for others, and a step away."""
    silent, mute = (found.silent(engine.parameters, rows, above=above) for above in (1.0, 0.0))
    further = found.loudest(silent)
    if further:
        found_there = compare(engine, inputs, twins_of(engine, inputs, outputs_alone(engine, inputs, further)))
        if found_there is not None:
            if not found_there.verdict.fast:
                return found_there.verdict
            silent &= found_there.silent(engine.parameters, further)
            mute &= found_there.silent(engine.parameters, further, above=0.0)
    if silent:
        elsewhere = _compare_elsewhere(engine, inputs, rows)
        if elsewhere is not None:
            if not elsewhere.verdict.fast:
                return elsewhere.verdict
            if elsewhere.verdict.trace == found.verdict.trace:
                silent &= elsewhere.silent(engine.parameters, rows)
                mute &= elsewhere.silent(engine.parameters, rows, above=0.0)
    reused = frozenset(name for name, place in found.loudness if place > 0)
    return replace(found.verdict, silent=frozenset(silent), mute=frozenset(mute & silent), reused=reused)


@contextmanager
def _numpy_refused(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Refuse a model that draws with NumPy's generator, whose state takes longer to copy than a step of a small model.

    Another thread may have drawn in the meantime: then the model gives the same outputs wherever the generator stands.
    """
    before = numpy.random.get_state(legacy=False)  # noqa: NPY002 - the one that a model would draw from
    yield
    after = numpy.random.get_state(legacy=False)  # noqa: NPY002
    if after["state"]["pos"] == before["state"]["pos"] and (after["state"]["key"] == before["state"]["key"]).all():
        return
    outputs = []
    state = RandomState.capture(devices_of(model))
    for seed in (0, 1, 2):
        state.restore()
        numpy.random.seed(seed)  # noqa: NPY002
        outputs.append(evaluate(model, inputs).detach())
    if not all(torch.equal(output.nan_to_num(), outputs[0].nan_to_num()) for output in outputs):
        numpy.random.set_state(before)  # noqa: NPY002
        raise InputError(
            f"{type(model).__name__} draws numbers with NumPy's global generator",
            expected="draws that a second pass of the step can repeat",
            remedy="Draw with torch's default generator or with Python's `random`.",
        )
    numpy.random.set_state(after)  # noqa: NPY002


def _compare_elsewhere(engine: FastEngine, inputs: Inputs, rows: list[int]) -> Comparison | None:
    """Compare once more with all weights a step away: behind a factor of zero nothing was to be seen of a parameter."""
    generator = torch.Generator().manual_seed(0)
    numbers = sum(parameter.numel() for parameter in engine.parameters.values())
    whole = math.hypot(*(float(whole_norm(parameter.detach())) for parameter in engine.parameters.values())) / numbers**0.5
    with movable(engine.parameters) as move:
        for name, parameter in engine.parameters.items():
            size = float(whole_norm(parameter.detach())) / max(parameter.numel(), 1) ** 0.5
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * (STEP * (max(size, whole) or 1.0))
            move(name, step.to(parameter))
        torch.clear_autocast_cache()  # casts of the weights as they were
        return compare(engine, inputs, twins_of(engine, inputs, outputs_alone(engine, inputs, rows)))


def _refuse_gradients_on_the_way(model: nn.Module) -> None:
    """Refuse a model whose reverse pass adds to `.grad` by itself: no plain gradient shows that part."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise InputError(
            f"A function of {type(model).__name__} calls backward() in its own reverse pass",
            expected="a reverse pass that returns its gradients",
            remedy="Let that function return torch.autograd.grad's gradients of all its inputs, its parameters among them.",
        )
