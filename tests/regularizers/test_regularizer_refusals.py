"""What the regulariser refuses: arguments, targets and activations, each with what to type instead."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from noisesam import models
from noisesam.regularizers import JSAMRegularizer

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


class TwoHeads(nn.Module):
    """A user's model whose last registered Linear layer is not the one that makes the logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.classify = nn.Linear(5, 3)
        self.project = nn.Linear(5, 7)

    def forward(self, inputs):
        hidden = functional.relu(self.stem(inputs))
        self.project(hidden)
        return self.classify(input=hidden)


def adaptive(model, **options) -> JSAMRegularizer:
    return JSAMRegularizer(model, mode="adaptive", rho=0.1, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"activation is missing in constant mode\. .*Type JSAMRegularizer\(model, activation=\.\.\., weight=\.\.\.\)\."),
        ({"activation": 0.1}, r"weight is missing in constant mode"),
        ({"activation": -1, "weight": 0}, r"activation is -1\. Expected a finite number of at least 0"),
        ({"activation": 0.1, "weight": float("nan")}, r"weight is nan"),
        ({"activation": 0.1, "weight": 0.1, "rho": 0.1}, r"rho was given\. .*Type mode='adaptive', or leave rho out\."),
        ({"activation": 0.1, "weight": 0.1, "hidden_layer": "stem"}, r"hidden_layer was given\. Expected .*adaptive mode only"),
        ({"activation": 0.1, "weight": 0.1, "loss": "mse"}, r"loss was given"),
        (
            {"mode": "adaptive"},
            r"rho is missing in adaptive mode\. .*Type JSAMRegularizer\(model, mode='adaptive', rho=\.\.\.\)\.",
        ),
        ({"mode": "adaptive", "rho": 0.1, "weight": 0.1}, r"weight was given\. .*Type mode='constant'"),
        ({"mode": "adaptve", "rho": 0.1}, r"mode is 'adaptve'\. .*Did you mean 'adaptive'\?"),
        ({"mode": "adaptive", "rho": 0.1, "loss": "crossentropy"}, r"Unknown loss .*Did you mean 'cross_entropy'\?"),
        (
            {"mode": "adaptive", "rho": 0.1, "last_layer": "clasify"},
            r"last_layer='clasify' names no module.*'stem', 'classify', 'project'\. Did you mean 'classify'\?",
        ),
        ({"mode": "adaptive", "rho": 0.1, "last_layer": ""}, r"last_layer='' names a TwoHeads"),
        (
            {"mode": "adaptive", "rho": 0.1, "last_layer": "stem"},
            r"No Linear layer is registered before .*'stem'.*constant mode",
        ),
        ({"mode": "adaptive", "rho": 0.1, "hidden_layer": "project"}, r"hidden_layer and last_layer are both 'project'"),
        (
            {"mode": "adaptive", "rho": 0.1, "hidden_layer": nn.Linear(2, 2)},
            r"hidden_layer is a layer that the model does not hold",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_type(arguments, message):
    with pytest.raises(ValueError, match=message):
        JSAMRegularizer(TwoHeads(), **arguments)


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"type Conv2d without a Linear layer\. .*Write the last layer as torch\.nn\.Linear\."):
        JSAMRegularizer(nn.Conv2d(1, 1, 1), activation=0.1, weight=0.2)


@pytest.mark.parametrize(
    ("targets", "loss", "message"),
    [
        (TARGETS[:2], "cross_entropy", r"Targets of shape \(2,\).*Expected integer labels of shape \(6,\) from 0 to 2"),
        (TARGETS + 1, "cross_entropy", r"from 1 to 3\. Expected integer labels"),
        (TARGETS.float(), "cross_entropy", r"type torch\.float32"),
        (TARGETS, "logistic", r"3 logits per example.*Type loss='cross_entropy'"),
        (TARGETS, functional.cross_entropy, r"The loss returned shape \(\) for 6 examples\. .*reduction='none'"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, loss, message):
    model = models.make("mlp", input_shape=(4,), classes=3, hidden=(5, 4))
    regularizer = adaptive(model, loss=loss)
    model(INPUTS)
    with pytest.raises(ValueError, match=message):
        regularizer(targets)


def test_one_logit_needs_the_logistic_loss_and_labels_zero_and_one():
    model = models.make("mlp", input_shape=(4,), classes=1, hidden=(5,))
    with adaptive(model) as regularizer:
        model(INPUTS)
        with pytest.raises(ValueError, match=r"One logit.*Type loss='logistic'"):
            regularizer(TARGETS % 2)
    with adaptive(model, loss="logistic") as regularizer:
        model(INPUTS)
        with pytest.raises(ValueError, match=r"Expected labels 0 and 1 of shape \(6,\)\. Write t = -1 as 0\."):
            regularizer(2 * (TARGETS % 2) - 1)


@pytest.mark.parametrize("inputs", [torch.zeros(4), torch.zeros(0, 4)])
def test_activations_that_are_no_batch_are_refused(inputs):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    regularizer = JSAMRegularizer(model, activation=0.1, weight=0.2)
    model(inputs)
    with pytest.raises(
        ValueError, match=r"Expected \(n, \.\.\., features\), n at least 1\. Put the examples along the first axis"
    ):
        regularizer()


def test_adaptive_mode_refuses_positions_at_the_last_layer_and_a_hidden_layer_that_does_not_run_before_it():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    regularizer = adaptive(model)
    model(INPUTS.reshape(2, 3, 4))
    with pytest.raises(ValueError, match=r"Expected \(n, features\) in adaptive mode\. Use the constant mode"):
        regularizer(TARGETS[:2])
    model = TwoHeads()
    regularizer = adaptive(model, last_layer="classify", hidden_layer="project")
    model.project = nn.Identity()  # the hooked layer is gone from the forward
    model(INPUTS)
    with pytest.raises(ValueError, match=r"hidden layer 'project' of the last layer 'classify' did not run before it"):
        regularizer(TARGETS)
