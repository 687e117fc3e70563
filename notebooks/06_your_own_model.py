# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model, your own data
#
# You have a table with labels that people wrote, some of them wrong, and a network of your own. Does a sharpness-aware method help you, and by which mechanism? This page
# asks on a made-up table, in under thirty lines that you can change to yours.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import noisesam
from noisesam import analysis, data, models, plotting

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing
SEEDS, EPOCHS, RADII = (1, 3, [0.1]) if SMALL else (3, 60, [0.05, 0.1, 0.2])
folder = tempfile.TemporaryDirectory()
table, runs_folder = Path(folder.name) / "birds", Path(folder.name) / "runs"

# %% [markdown]
# ## The data: birds, and volunteers in a hurry
#
# Four species are described by twelve measurements. Two hidden traits tell the species apart; the measurements mix them with a lot that has nothing to do with the species. Each bird is named
# by one volunteer, and volunteers make the mistakes that people make: they confuse species that look alike, most of all on birds that lie between two of them,
# and some are careless.
#
# The result is two files, as you might have them: `train.csv` with a column `label` (and here, because the birds are made up, a column `clean_label` with the truth), and `test.csv`
# with labels that were checked.

# %%
SPECIES = np.array(["bittern", "crane", "heron", "stork"])
TRAITS = np.array([[0.0, 0.0], [2.2, 0.0], [1.1, 1.2], [3.2, 1.4]])
generator = np.random.default_rng(0)
mixing = generator.normal(size=(2, 12))


def birds(count):
    truth = generator.integers(0, len(SPECIES), count)
    traits = TRAITS[truth] + 0.4 * generator.normal(size=(count, 2))
    measured = traits @ mixing / np.sqrt(2) + 0.7 * generator.normal(size=(count, 12))
    return pd.DataFrame(measured, columns=[f"x{number}" for number in range(12)]), truth, traits


def named_by_volunteers(traits):
    distance = np.linalg.norm(traits[:, None] - TRAITS[None], axis=2)
    carelessness = generator.choice([0.25, 0.5, 2.0], size=(len(traits), 1))  # one volunteer per bird
    likeness = np.exp(-distance / carelessness)
    return (likeness.cumsum(1) / likeness.sum(1, keepdims=True) < generator.random((len(traits), 1))).sum(1)


table.mkdir()
measured, truth, traits = birds(400 if SMALL else 800)
measured.assign(label=SPECIES[named_by_volunteers(traits)], clean_label=SPECIES[truth]).to_csv(table / "train.csv", index=False)
measured, truth, _ = birds(200 if SMALL else 2000)
measured.assign(label=SPECIES[truth]).to_csv(table / "test.csv", index=False)

named = data.load(table)
plotting.plot_transition_matrix(named.noise.transition_matrix, named.classes, realised_rate=named.realised_rate).figure

# %% [markdown]
# **Read it** row by row: what a species was called. The volunteers' mistakes are not spread evenly; species that look alike are confused.
#
# ## The thirty lines
#
# A network of your own, up to the last layer; SGD, and 1-SAM with three radii; all seeds; then what the runs say. Change the class, the folder and the
# numbers to yours. A folder of `.npy` files or one `.npz` file works as well as tables, and nothing but `train.csv` is required.


# %% tags=["thirty-lines"]
class Gated(nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.first, self.value, self.gate = nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return hidden + torch.relu(self.value(hidden)) * torch.sigmoid(self.gate(hidden))


@models.register("gated", title="A hidden layer and a gated one.")
def gated(input_shape, classes, generator, *, width=64):
    model = models.Classifier(Gated(input_shape[0], width), features=width, classes=classes, input_shape=input_shape)
    return models.initialise(model, generator)


for seed in range(SEEDS):
    for method in ({"name": "sgd"}, *({"name": "1-sam", "rho": rho} for rho in RADII)):
        config = {"data": {"name": str(table), "validation_size": 200}, "model": {"name": "gated"}, "method": method}
        config |= {"training": {"epochs": EPOCHS, "batch_size": 32, "threads": 1}, "optimizer": {"lr": 0.1}, "seed": seed}
        noisesam.fit(config, runs_folder / f"{method['name']}-{method.get('rho', 0)}-{seed}")

runs = noisesam.open_runs(runs_folder)
for sentence in analysis.findings(runs):
    print("-", sentence)

# %% [markdown]
# Where a method has several settings, the one with the highest accuracy on held-out birds **with the volunteers' labels** stands for it. No checked label takes part in the choice.
#
# ## What happened?

# %%
stops = analysis.early_stopping(runs)
plotting.plot_accuracy_curves(runs.metrics, stops)[0].figure

# %% [markdown]
# **Answer.** SGD comes to repeat the volunteers' mistakes and pays for it on the checked birds; with a radius chosen on noisy labels 1-SAM repeats fewer of them. The radius matters: in the
# panel of the largest one the network no longer learns what is right. And whoever can stop early gains less, or nothing: the sentences above say which differences can
# be told from none.
#
# ## Whose gradient counted?
#
# A ratio above 1 means that a step listens more to a bird with a right label than to one with a wrong label. The rules are compared at the same weights, those of SGD.

# %%
plotting.plot_gradient_weight(None, analysis.gradient_weight_at_equal_weights(runs))[0].figure

# %% [markdown]
# **Answer.** Below 1 after the first steps: what is not fitted yet has the large gradient, and wrong labels are fitted last. The rules that perturb each example's logit scale,
# 1-SAM and L-SAM, lift the ratio; J-SAM, which leaves it alone, does not. On their own paths methods have other labels left to fit, so do not compare them there
# ([03_deep_mechanism](03_deep_mechanism.ipynb)).
#
# ## One batch, taken apart
#
# Any `torch.nn.Module` can be taken apart, trained by noisesam or not. Here is yours at its first weights, and what 1-SAM would change for each bird.

# %%
model = models.make("gated", input_shape=(12,), classes=len(SPECIES), seed=0)
parts = noisesam.decompose(model, named.inputs[:256], named.labels[:256], rho=0.1)
wrong = named.is_noisy[:256].numpy()
parts = {
    name: getattr(parts, name).numpy()
    for name in ("losses", "residual_norm", "jacobian_gain", "logit_weight", "jacobian_weight")
}
pd.DataFrame(parts).groupby(np.where(wrong, "wrong label", "right label")).mean().round(3)

# %% [markdown]
# `residual_norm` is the logit scale, `jacobian_gain` the gradient's norm divided by it; the two weights are the factors by which 1-SAM's perturbation changes them.
#
# ## In a training loop of your own
#
# `noisesam.OneSAM(model, rho=...)` and every other method take the place of `loss.backward()` and nothing else: see the [README](../README.md).

# %%
models.unregister("gated")
folder.cleanup()
