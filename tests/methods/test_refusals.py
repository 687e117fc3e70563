"""What methods refuse, always with three parts: what was given, what was expected, what to type instead.

Hyper-parameters, parameter groups, batches, scalers and states.
"""

from __future__ import annotations

import math
import re

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisesam.errors import ConfigurationError, InputError
from noisesam.methods import controls, describe, make, names
from noisesam.training import load_config
from noisesam.training.validation import validate

FEATURES, CLASSES, EXAMPLES = 5, 3, 6
INDEX = torch.arange(EXAMPLES)


@pytest.fixture(autouse=True, scope="module")
def _as_users_meet_it():
    """Without the suite's run-time type checker: what is refused here is refused by the library itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, FEATURES, generator=generator), torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)


def built(name: str, **options):
    return lambda: make(name, network(), **options)


def asked(name: str = "sam", *, inputs=None, targets=None, start: bool = True, model=None, **call):
    """A step with something wrong in what is handed to it."""

    def attempt():
        method = make(name, network() if model is None else model)
        if start:
            method.start_epoch(0)
        x, y = batch()
        method.backward(x if inputs is None else inputs, y if targets is None else targets, **call)

    return attempt


def grouped(groups):
    """SAM with parameter groups, which may be a function of the model."""

    def attempt():
        model = network()
        make("sam", model, parameter_groups=groups(model) if callable(groups) else groups)

    return attempt


def loaded(state, name: str = "sam"):
    return lambda: make(name, network()).load_state_dict(state)


class Unused(nn.Module):
    """A model whose only trainable parameter plays no part in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = nn.Linear(FEATURES, CLASSES).requires_grad_(False), nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        return self.body(inputs)


BAD = {
    # Hyper-parameters.
    "negative rho": (built("sam", rho=-0.1), "rho=-0.1", "at least 0", "rho=0.05"),
    "rho that is no number": (built("1-sam", rho=math.nan), "rho=nan", "finite radius", "rho=0.05"),
    "infinite rho": (built("asam", rho=math.inf), "rho=inf", "finite radius", "rho=0.05"),
    "rho beyond any float": (built("1-sam", rho=10**400), "rho=", "finite radius", "rho=0.05"),
    "rho as text": (built("gsam", rho="0.1"), "rho='0.1'", "finite radius", "rho=0.05"),
    "rho as a truth value": (built("sam", rho=True), "rho=True", "finite radius", "rho=0.05"),
    "beta of zero": (built("esam", beta=0.0), "beta=0.0", "above 0 and at most 1", "share of weights"),
    "beta above one": (built("esam", beta=1.5), "beta=1.5", "above 0 and at most 1", "share of weights"),
    "gamma of zero": (built("esam", gamma=0), "gamma=0", "above 0 and at most 1", "share of examples"),
    "a mask with a slip": (built("esam", mask="tensors"), "mask='tensors'", "element, tensor", "Did you mean 'tensor'?"),
    "k of zero": (built("looksam", k=0), "k=0", "whole number of at least 1", "k=1 is SAM"),
    "k that is not whole": (built("looksam", k=2.5), "k=2.5", "whole number of at least 1", "k=1 is SAM"),
    "k as a float": (built("looklayersam", k=5.0), "k=5.0", "whole number", "Type the whole number: k=5"),
    "k as text": (built("looksam", k="5"), "k='5'", "whole number", "Type the whole number: k=5"),
    "sparsity of one": (built("ssam-f", sparsity=1.0), "sparsity=1.0", "below 1", "use sgd"),
    "sparsity against the pattern": (built("ssam-d", pattern="1:4", sparsity=0.5), "'1:4'", "sparsity=0.75", "Leave sparsity"),
    "a pattern that keeps more than all": (built("ssam-d", pattern="5:4"), "pattern='5:4'", "1 <= N <= M", "pattern='2:4'"),
    "a shard of no examples": (built("m-sam", examples_per_shard=0), "examples_per_shard=0", "positive", "not the shards"),
    "an average that never moves": (built("f-sam", ema_decay=1.0), "ema_decay=1.0", "below 1", "ema_decay=0.9"),
    "a teacher that never moves": (built("mesa", ema_decay=1), "ema_decay=1", "below 1", "ema_decay=0.9998"),
    "a fraction of zero": (built("ausam", fraction=0.0), "fraction=0.0", "above 0", "Leave fraction out"),
    "unbiased weights without probabilities": (built("ausam", unbiased=True), "unbiased=True", "bernoulli", "Set sampling"),
    "probabilities the wrong way round": (built("ausam", s_min=0.9, s_max=0.5), "s_min=0.9", "at most s_max", "Equal values"),
    "a temperature of zero": (built("saf", temperature=0.0), "temperature=0.0", "above 0", "Leave temperature out"),
    "a negative weight of the divergence": (built("mesa", lam=-0.3), "lam=-0.3", "at least 0", "Leave lam out"),
    "a number in quotes": (built("vasso", theta="0.4"), "theta='0.4'", "above 0", "without quotes: theta=0.4"),
    "a flag as a number": (built("looksam", per_tensor=1), "per_tensor=1", "True or False", "Type per_tensor=True"),
    "a flag as text": (built("sgd", gradient_norms="no"), "gradient_norms='no'", "True or False", "gradient_norms=False"),
    "a negative seed": (built("random-sam", seed=-1), "seed=-1", "at least 0", "Leave seed out"),
    "an unknown engine": (built("1-sam", engine="quick"), "engine 'quick'", "auto, fast, reference", "Type one of these"),
    "a chunk of no examples": (built("sam", chunk_size=0), "chunk_size=0", "positive number", "chunk_size='auto'"),
    "a memory budget of nothing": (built("sam", memory_budget=0), "memory_budget=0", "number of bytes", "2**30"),
    "a radius in constant mode": (built("reg-sgd", rho=0.1), "rho", "activation and weight", "mode='adaptive'"),
    "no radius in adaptive mode": (built("reg-sgd", mode="adaptive"), "rho is missing", "number of at least 0", "rho=..."),
    "a coefficient of the other mode": (
        built("reg-sgd", mode="adaptive", rho=0.1, weight=0.1), "weight was given", "constant mode", "mode='constant'",
    ),
    "a layer that is not there": (built("reg-sgd", last_layer="head"), "last_layer='head'", "'0', '2'", "named_modules"),
    "an unknown loss": (built("sam", loss="crossentropy"), "'crossentropy'", "logistic, mse", "Did you mean 'cross_entropy'?"),
    "a loss of another type": (built("sam", loss=3), "loss of type int", "callable", "loss='cross_entropy'"),
    "a model of another type": (lambda: make("sam", "mlp"), "type str", "torch.nn.Module", "the module itself"),
    "an unknown hyper-parameter": (built("sam", rhoo=0.1), "'rhoo'", "rho, examples_per_shard", "Did you mean 'rho'?"),
    "nothing like a hyper-parameter": (built("sam", zzzzz=0.1), "'zzzzz'", "one of: rho", "noisesam methods sam"),
    "an unknown method": (built("look-sam"), "'look-sam'", "sgd, sam", "Did you mean 'looksam'?"),
    "a method that is no name": (built(["sam"]), "['sam']", "sgd, sam", "Type one of these names"),
    "a method of a configuration": (
        lambda: validate(load_config({"method": {"name": "looksamm"}})), "looksamm", "looksam", "Did you mean 'looksam'?",
    ),
    "a hyper-parameter of a configuration": (
        lambda: validate(load_config({"method": {"name": "esam", "betta": 0.5}})), "betta", "method.beta", "method.beta'?",
    ),
    # Parameter groups.
    "groups as one mapping": (grouped({"params": [], "rho": 1.0}), "of type dict", "groups such as", "a list of one"),
    "groups as a number": (grouped(3), "of type int", "groups such as", "a list of one"),
    "groups as text": (grouped("0.weight"), "of type str", "groups such as", "a list of one"),
    "a group that is a list": (grouped([[1.0]]), "parameter_groups[0] of type list", "groups such as", "{'params'"),
    "a group without rho": (grouped([{"params": []}]), "with the keys 'params'", "'params' and 'rho'", "optimizer's groups"),
    "a group with a learning rate": (
        grouped(lambda m: [{"params": m.parameters(), "rho": 0.1, "lr": 1.0}]), "'lr'", "'params' and 'rho'", "optimizer's",
    ),
    "a group of names": (grouped([{"params": "0.weight", "rho": 0.1}]), "'params' of type str", "a parameter", "not names"),
    "a group of listed names": (grouped([{"params": ["0.weight"], "rho": 0.1}]), "'0.weight'", "parameters of", "not names"),
    "a group of copies": (
        grouped(lambda m: [{"params": [m[0].weight.clone()], "rho": 0.1}]),
        "a Tensor that is no parameter", "built with", "copies",
    ),
    "a group of nothing": (grouped([{"params": [], "rho": 0.1}]), "without parameters", "at least one", "serves once"),
    "a group with a negative radius": (
        grouped(lambda m: [{"params": m.parameters(), "rho": -0.1}]), "parameter_groups[0]['rho']=-0.1", "at least 0", "rho=0",
    ),
    "a parameter in two groups": (
        grouped(lambda m: [{"params": [m[0].weight], "rho": 0.1}, {"params": m[0].weight, "rho": 0.2}]),
        "parameter_groups[1] repeats the parameter '0.weight'", "one group at most", "one of them",
    ),
    # What is handed to a step.
    "no index for saf": (asked("saf"), "SAF without index", "index=(b,)", "index=index"),
    "no index for ausam": (asked("ausam"), "AUSAM without index", "index=(b,)", "index=index"),
    "an index of another length": (asked("saf", index=INDEX[:-1]), "index of shape (5,)", "shape (6,)", "same batch"),
    "an index that is a list": (asked("ausam", index=[0, 1, 2]), "index of type list", "shape (6,)", "same batch"),
    "an index of floats": (asked("ausam", index=INDEX.float()), "torch.float32", "whole numbers", "index.long()"),
    "a negative index": (asked("saf", index=INDEX - 3), "index from -3", "from 0", "from 0"),
    "targets on another device": (asked(targets=batch()[1].to("meta")), "Targets on meta", "one device", "targets.to('cpu')"),
    "targets of another length": (asked(targets=batch()[1][:-1]), "shape (5,) for 6 examples", "first axis is 6", "same batch"),
    "targets that are floats": (asked(targets=batch()[1].float()), "torch.float32", "integer class labels", "targets.long()"),
    "targets out of range": (asked(targets=batch()[1] + 3), "Labels out of range", "from 0 to 2", "number of classes"),
    "targets that are a list": (asked(targets=[0, 1, 2]), "shape list", "a tensor", "same batch"),
    "an empty batch": (asked(inputs=batch()[0][:0], targets=batch()[1][:0]), "An empty batch", "one example", "drop_last"),
    "no epoch for saf": (asked("saf", start=False, index=INDEX), "before start_epoch", "start of every epoch", "training loop"),
    "no epoch for mesa": (asked("mesa", start=False), "before start_epoch", "start of every epoch", "training loop"),
    "no epoch for ssam-d": (asked("ssam-d", start=False), "before start_epoch", "start of every epoch", "training loop"),
    "a negative epoch": (lambda: make("mesa", network()).start_epoch(-1), "epoch=-1", "at least 0", "start_epoch(0)"),
    "a scaler of another kind": (asked(scaler=nn.Identity()), "of type Identity", "torch.amp.GradScaler", "Leave scaler out"),
    "a scale as a scaler": (asked(scaler=1024.0), "scaler=1024.0", "torch.amp.GradScaler", "Leave scaler out"),
    "a scale that is no number": (asked(scale=math.nan), "scale=nan", "finite number", "len(inputs) / total"),
    "new_step as a number": (asked(new_step=0), "new_step=0", "True or False", "new_step=False"),
    "BatchNorm for a per-example method": (
        asked("l-sam", model=nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES))),
        "BatchNorm1d", "", "GroupNorm",
    ),
    "frozen everywhere": (asked(model=network().requires_grad_(False)), "without trainable", "requires_grad=True", "Unfreeze"),
    "trainable and unused": (asked(model=Unused()), "takes part in its output", "requires_grad=True", "frozen, detached"),
    # What is handed to load_state_dict.
    "the state of another method": (loaded({"method": "sgd", "steps": 0}), "'sgd'", "state of 'sam'", "configuration"),
    "a state that is none": (loaded(3), "type int", "state of 'sam'", "configuration"),
    "a state without its counter": (loaded({"method": "sam"}), "without 'steps'", "state_dict", "configuration"),
    "a state with another counter": (loaded({"method": "sam", "steps": "3"}), "steps='3'", "state_dict", "configuration"),
    "a state without its epoch": (
        loaded({"method": "mesa", "steps": 1, "average": {}}, "mesa"), "without 'epoch'", "state_dict", "configuration",
    ),
    "an average of another model": (
        loaded({"method": "f-sam", "steps": 1, "average": {"0.weight": torch.zeros(2)}}, "f-sam"),
        "'0.weight'", "shape", "configuration",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_refused_with_given_expected_and_remedy(case):
    attempt, given_, expected, remedy = BAD[case]
    with pytest.raises((InputError, ConfigurationError)) as caught:
        attempt()
    error = caught.value
    assert error.given
    assert error.expected
    assert error.remedy
    assert given_ in error.given
    assert expected in error.expected
    assert remedy in error.remedy
    assert str(error).startswith(error.given.rstrip("."))  # the three parts are what is printed, in that order
    assert str(error).index(error.expected.rstrip(".")) < str(error).index(error.remedy.rstrip("."))


def test_a_method_that_shows_nothing_is_not_built_on_the_way_to_a_refusal():
    """A refused step leaves no gradient and no count behind."""
    model = network()
    method = make("sam", model)
    for options in ({"scaler": 3}, {"scale": math.inf}, {"new_step": None}):
        with pytest.raises(InputError):
            method.backward(*batch(), **options)
    assert method.steps == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert make("sam", network(), rho=numpy.float32(0.5)).rho == 0.5
    assert make("looksam", network(), k=numpy.int64(3)).k == 3
    assert type(make("esam", network(), beta=numpy.float64(0.5)).beta) is float


# ------------------------------------------------------------------ every hyper-parameter of every method

NO_NUMBER = st.sampled_from(
    ["0.1", "a", "", [0.1], (), {}, 1j, math.nan, math.inf, -math.inf, True, False, object(), torch.ones(2)]
)
NEGATIVE = st.floats(max_value=0, exclude_max=True) | st.integers(max_value=-1)
NOT_WHOLE = st.floats(-1e6, 1e6).filter(lambda value: not value.is_integer())
TEXT = st.text(max_size=12)
# The domains, stated here once more and not read from the code.
ABOVE_ZERO = {"beta", "gamma", "fraction", "s_min", "s_max", "temperature", "theta"}
AT_MOST_ONE = {"beta", "gamma", "fraction", "s_min", "s_max", "theta", "drop_rate"}
BELOW_ONE = {"ema_decay"}
AT_LEAST_ONE = {"k", "lag", "update_freq", "num_samples", "examples_per_shard"}
CHOICES = {"auto", "fast", "reference", "element", "tensor", "fixed", "bernoulli", "after", "before", "zero", "gradient",
           "constant", "adaptive", "unstructured", "structured"}  # fmt: skip
GROUPS = st.sampled_from(
    [3, "0.weight", {"params": []}, [3], ["rho"], [[]], [{}], [{"rho": 0.1}], [{"params": ["0.bias"], "rho": 0.1}],
     [{"params": [torch.ones(2)], "rho": 0.1}], [{"params": 3, "rho": 0.1}], [{"params": [], "rho": 0.1}], torch.ones(2)],
)  # fmt: skip
WITHOUT_DEFAULT = {
    "sparsity": NO_NUMBER | NEGATIVE | st.floats(min_value=1),
    "rho": NO_NUMBER | NEGATIVE,
    "activation": NO_NUMBER | NEGATIVE,
    "weight": NO_NUMBER | NEGATIVE,
    "last_layer": TEXT.filter(lambda text: text not in ("0", "2")) | st.sampled_from([3, 0.5, True, []]),
    "hidden_layer": TEXT | st.sampled_from([3, 0.5, True, []]),
    "chunk_size": st.integers(max_value=0) | NOT_WHOLE | TEXT | st.sampled_from([True, [], {}, 4.0, torch.ones(2)]),
    "parameter_groups": GROUPS,
    "memory_budget": st.integers(max_value=0) | NOT_WHOLE | TEXT | st.sampled_from([True, [], 4.0]),
    "examples_per_shard": st.integers(max_value=0) | NOT_WHOLE | TEXT | st.sampled_from([True, [], 4.0]),
}


def bad_values(method: str, key: str, default: object) -> st.SearchStrategy:
    """Values outside of the domain of a hyper-parameter, as its default and the tables above say."""
    if key in WITHOUT_DEFAULT and (default is None or key in ("chunk_size", "examples_per_shard")):
        return WITHOUT_DEFAULT[key]
    none = st.none()
    if isinstance(default, bool):
        return none | TEXT | st.sampled_from([0, 1, 0.5, math.nan, [], {}, torch.tensor(True)])
    if isinstance(default, int):
        lowest = 1 if key in AT_LEAST_ONE or (method, key) == ("ssam-d", "epochs") else 0
        return none | NO_NUMBER | NOT_WHOLE | st.integers(max_value=lowest - 1)
    if isinstance(default, float):
        bad = none | NO_NUMBER | NEGATIVE
        if key in ABOVE_ZERO:
            bad |= st.sampled_from([0, 0.0, -0.0])
        if key in AT_MOST_ONE or (method, key) == ("gnp", "alpha"):
            bad |= st.floats(min_value=1, exclude_min=True) | st.integers(min_value=2)
        if key in BELOW_ONE:
            bad |= st.floats(min_value=1)
        return bad
    if isinstance(default, str):
        wrong = TEXT.filter(lambda text: text not in CHOICES and not re.fullmatch(r"\d+:\d+", text))
        return none | wrong | st.sampled_from([3, 0.5, True, [], {}, "0:4", "5:4", ["auto"]])
    raise AssertionError(f"{method}: no bad value is known of {key}={default!r}; state its domain here")


CASES = [(name, key) for name in (*names(), *controls()) for key in describe(name).hyperparameters]
"""Every described hyper-parameter: one that is added without a domain here makes the test below fail."""


@settings(max_examples=600)
@given(st.data())
def test_no_bad_value_of_any_hyper_parameter_is_accepted_or_fails_otherwise(data):
    name, key = data.draw(st.sampled_from(CASES))
    value = data.draw(bad_values(name, key, describe(name).hyperparameters[key][0]))
    with pytest.raises((InputError, ConfigurationError)) as caught:
        make(name, network(), **{key: value})
    error = caught.value
    assert key in error.given
    assert error.expected
    assert error.remedy
    assert len(error.given) < 250


@pytest.mark.parametrize(("name", "key"), CASES)
def test_of_every_hyper_parameter_an_object_and_a_list_of_nothing_known_are_refused(name, key):
    for value in (object(), ["nothing"]):
        with pytest.raises((InputError, ConfigurationError)) as caught:
            make(name, network(), **{key: value})
        assert key in caught.value.given
        assert caught.value.expected
        assert caught.value.remedy


def test_a_wrapper_that_averages_gradients_in_loss_backward_is_refused(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        for name in ("sgd", "sam", "1-sam"):
            with pytest.raises(InputError, match=r"wrapped in DistributedDataParallel.*Pass model\.module"):
                make(name, wrapped)
            make(name, wrapped.module)
    finally:
        torch.distributed.destroy_process_group()
