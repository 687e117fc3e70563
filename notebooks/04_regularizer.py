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
# # Can a penalty take J-SAM's place?
#
# J-SAM perturbs the Jacobian of every example's gradient and keeps its logit scale (how wrong the output is). In networks it is the half of sharpness-aware
# minimization that resists wrong labels ([03_deep_mechanism](03_deep_mechanism.ipynb)). It costs a second pass, and a perturbation for every example.
#
# Theory says what it amounts to: a penalty on the last hidden activation $h$ and on the last layer $V$ ([02_linear_theory](02_linear_theory.ipynb)). A penalty needs no
# second pass. `JSAMRegularizer` has two forms of it:
#
# | mode | penalty, mean over the batch | to be chosen |
# |---|---|---|
# | `adaptive` | $\frac{\rho}{N_i}\big(\tfrac12\lVert r_i\rVert^2\lVert h_i\rVert^2 + \tfrac12\lVert x_i\rVert^2\lVert V^\top r_i\rVert^2\big)$, $r_i$ and $N_i$ held constant | J-SAM's own $\rho$ |
# | `constant` | $\gamma_h\lVert h_i\rVert^2 + \gamma_V\lVert V\rVert^2$ | two coefficients |
#
# The second form was proposed by Baek, Kolter and Raghunathan (2024, [arXiv:2405.03676](https://arxiv.org/abs/2405.03676)); the first is derived in
# [docs/mechanism.md](../docs/mechanism.md#regulariser). The question of this page: how close do they come?

# %%
# %matplotlib inline
import copy
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import noisesam
from noisesam import analysis, data, experiments, methods, models, plotting
from noisesam.plotting import method_style
from noisesam.plotting.style import style

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing

# %% [markdown]
# ## How close is the adaptive penalty to J-SAM, at the same weights?
#
# Take a batch of noisy digits, a freshly drawn network, and compute three steps: SGD's, J-SAM's, and SGD's with the adaptive penalty. The height of a line is the distance
# from the penalty's step to J-SAM's, divided by the distance from SGD's step to J-SAM's. At 1 the penalty is no better than nothing; at 0 it is J-SAM. The right
# picture shows whether what the two add to SGD's step points the same way.

# %%
digits = data.add_label_noise(data.load("digits").subset(range(200)), "symmetric", 0.4, seed=0).to(dtype=torch.float64)
x, y = digits.inputs[:64], digits.labels[:64]
NETWORKS = {
    "two linear layers": ("two-layer-linear", {"width": 32}),
    "one hidden layer, tanh": ("mlp", {"hidden": (32,), "activation": "tanh"}),
    "one hidden layer, ReLU": ("mlp", {"hidden": (32,)}),
    "two hidden layers, ReLU": ("mlp", {"hidden": (32, 32)}),
}


def step(name, model, **options):
    found = methods.make(name, model, **options).step_gradient(x, y)
    return torch.cat([found[key].flatten() for key, _ in model.named_parameters()])


radii = np.logspace(-3, 1, 5 if SMALL else 13)
rows = []
for label, (name, options) in NETWORKS.items():
    model = models.make(name, input_shape=x.shape[1:], classes=10, seed=0, **options).double()
    plain = step("sgd", model)
    for rho in radii:
        jsam = step("j-sam", model, rho=float(rho)) - plain
        penalty = step("reg-sgd", model, mode="adaptive", rho=float(rho)) - plain
        cosine = float(jsam @ penalty / (jsam.norm() * penalty.norm()))
        rows.append((label, rho, float((penalty - jsam).norm() / jsam.norm()), cosine, float(penalty.norm() / jsam.norm())))
close = pd.DataFrame(rows, columns=["network", "rho", "distance", "cosine", "length ratio"])

with style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.4), layout="constrained")
    for (label, own), marker in zip(close.groupby("network", sort=False), "sD^o", strict=True):
        left.loglog(own["rho"], own["distance"].clip(lower=1e-17), marker=marker, label=label)
        right.semilogx(own["rho"], own["cosine"], marker=marker)
    left.axhline(1, color="#555555", linewidth=0.8)
    left.set_ylabel("distance to J-SAM's step (SGD's: 1)")
    right.set_ylim(0, 1.05)
    right.set_ylabel("cosine of what is added to SGD")
    for ax in (left, right):
        ax.set_xlabel("ρ")
    figure.legend(loc="outside lower center", ncols=2)

# %%
close[np.isclose(close["rho"], 0.1)].set_index("network").drop(columns="rho").map("{:.2g}".format)

# %% [markdown]
# **Answer.** For two linear layers the distance is rounding error, at every $\rho$: there the penalty *is* J-SAM. As soon as there is an activation function it is an
# approximation. The table (at $\rho = 0.1$) says of what kind: `cosine` is the agreement in direction of what the penalty and J-SAM add to SGD, `length ratio` how
# much of it there is.
#
# ## Does it stay exact in training?
#
# An identity of one step holds for all steps only if nothing accumulates. Two linear networks start at the same weights and see the same noisy batches. One follows J-SAM,
# the other SGD with the adaptive penalty.

# %%
STEPS, RHO = 12 if SMALL else 400, 0.1

first = models.make("two-layer-linear", input_shape=x.shape[1:], classes=10, width=32, seed=0).double()
RULES = {"sgd": ("sgd", {}), "j-sam": ("j-sam", {"rho": RHO}), "adaptive": ("reg-sgd", {"mode": "adaptive", "rho": RHO})}
trained = {label: copy.deepcopy(first) for label in RULES}
makers = {label: methods.make(name, trained[label], **options) for label, (name, options) in RULES.items()}
optimizers = {label: torch.optim.SGD(model.parameters(), lr=0.1) for label, model in trained.items()}
vector = torch.nn.utils.parameters_to_vector
rows = []
generator = torch.Generator().manual_seed(0)
while len(rows) < STEPS:
    for inputs, labels, _ in digits.batches(50, generator=generator):
        for label, method in makers.items():
            optimizers[label].zero_grad()
            method.backward(inputs, labels)
            optimizers[label].step()
        weights = {label: vector(model.parameters()).detach() for label, model in trained.items()}
        size = (weights["j-sam"] - vector(first.parameters()).detach()).norm()
        rows.append({label: float((weights[label] - weights["j-sam"]).norm() / size) for label in ("sgd", "adaptive")})
apart = pd.DataFrame(rows, index=range(1, len(rows) + 1))

with style():
    figure, ax = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    ax.semilogy(apart.index, apart["sgd"], color=method_style("sgd").color, label="SGD")
    ax.semilogy(apart.index, apart["adaptive"], "--", color=method_style("reg-sgd").color, label="SGD + adaptive penalty")
    ax.set_xlabel("step")
    ax.set_ylabel("distance of weights to J-SAM's\n(way that J-SAM has gone: 1)")
    ax.legend(loc="center right")
print(
    f"after {len(apart)} steps: SGD {apart['sgd'].iloc[-1]:.2f}, SGD with the adaptive penalty {apart['adaptive'].iloc[-1]:.1e}"
)

# %% [markdown]
# **Answer.** Yes. The two networks stay the same to rounding, while SGD without the penalty goes elsewhere.
#
# ## And in a network that memorises?
#
# Now the setting of `noisesam demo`: 1,000 digits with 40% wrong labels, two hidden layers with ReLU, where neither form is exact. J-SAM's $\rho$ and the
# constant coefficients were chosen on noisy validation labels of five other seeds ([every try](../experiments/calibration.toml)); the adaptive form takes J-SAM's own $\rho$.

# %%
SEEDS = 2 if SMALL else 5
CHOSEN = experiments.read_calibration(Path("../experiments/calibration.toml")).choices
J_SAM, PENALTY = (CHOSEN["baek2024-cpu-digits", name].options for name in ("j-sam", "reg-sgd"))
print("j-sam", J_SAM, "penalty", PENALTY)
METHODS = {
    "sgd": {"name": "sgd"},
    "j-sam": {"name": "j-sam", **J_SAM},
    "constant": {"name": "reg-sgd", **PENALTY},
    "adaptive": {"name": "reg-sgd", "mode": "adaptive", **J_SAM},
}
SETTING = {
    "data": {
        "name": "digits",
        "train_size": 300 if SMALL else 1200,
        "test_size": 200 if SMALL else None,
        "validation_size": 200,
    },
    "noise": {"kind": "symmetric", "rate": 0.4},
    "model": {"name": "mlp", "options": {"hidden": [32, 32] if SMALL else [128, 128]}},
    "optimizer": {"lr": 0.2},
    "training": {"epochs": 4 if SMALL else 150, "batch_size": 64, "threads": 1},
    "tracking": {"rho": 0.1, "probe_size": 64 if SMALL else 128, "probe_every": 2 if SMALL else 10},
    "checkpoint": {"every": 1000},
}

folder = tempfile.TemporaryDirectory()
for seed in range(SEEDS):
    for label, method in METHODS.items():
        noisesam.fit(SETTING | {"method": method, "seed": seed}, Path(folder.name) / f"{label}-seed{seed}")
runs = noisesam.open_runs(folder.name)


def short(table):
    """Name the two forms of the penalty by one word each."""
    words = {name: "adaptive" if "mode=adaptive" in name else "constant" for name in table["setting"].unique() if name}
    return table.assign(setting=table["setting"].replace(words))


stops = analysis.early_stopping(runs)
plotting.plot_accuracy_curves(short(runs.metrics), short(stops))[0].figure

# %%
gains = short(analysis.paired_differences(runs, baseline="sgd"))
gains[["method", "setting", "selection", "difference", "low", "high", "pairs"]].round(3)

# %%
summary = short(analysis.summary(runs)).set_index(["method", "setting"])
shown = {
    "validation_test_accuracy_mean": "test accuracy, stopped on noisy validation",
    "last_test_accuracy_mean": "test accuracy, last",
    "last_noisy_fitted_mean": "wrong labels fitted, last",
    "forward_passes": "forward passes",
    "backward_passes": "backward passes",
}
summary[list(shown)].rename(columns=shown).round(3)

# %% [markdown]
# **Answer.** With one forward and one backward pass the constant penalty has all of J-SAM's gain by the end of training, and fewer wrong labels are fitted. What the
# adaptive penalty has cannot be told from none. It is exact where the network is linear, and here it is not: the picture above says how far its step is from J-SAM's. At early
# stopping the differences are smaller, and the intervals say which of them can be told from none with these few seeds.
#
# ## What do they hold down?

# %%
plotting.plot_norms(short(analysis.norms(runs)))[0].figure

# %% [markdown]
# **Answer.** All three keep the last hidden activation far below SGD's. They differ in the last layer: the constant penalty holds it down most, J-SAM less, the adaptive penalty
# least. It is the last layer in which the adaptive form falls short of what it stands for.
#
# ## In your own loop
#
# Three lines, for any model that has a last linear layer:

# %%
model = models.make("mlp", input_shape=(1, 8, 8), classes=10)
inputs, labels = digits.inputs[:64].float(), digits.labels[:64]

regularizer = noisesam.JSAMRegularizer(model, activation=0.03, weight=0.03)
loss = torch.nn.functional.cross_entropy(model(inputs), labels) + regularizer()
loss.backward()

print(regularizer)
folder.cleanup()

# %% [markdown]
# The coefficients are a matter of the data and the model: choose them on noisy validation labels, as every radius here was chosen or should be.
