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
# # One family: what is perturbed, for whom, and at what price?
#
# Sharpness-aware minimization (SAM) takes the gradient at weights that were moved uphill first, $w \to w+\epsilon$. Many methods followed. Some make it cheaper, some choose
# another $\epsilon$, some change what is done with the two gradients. They were mostly compared on clean labels. Which of them keep what helps against **wrong** labels?
#
# This page puts them side by side: their rules, their perturbations at the same weights, their price, and what they keep of the gain.

# %%
# %matplotlib inline
import os
import tempfile
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import noisesam
from noisesam import analysis, data, methods, models, plotting, training
from noisesam.plotting import GROUP_STYLES, method_style
from noisesam.plotting.style import style

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing
pd.set_option("display.max_colwidth", None)

# %% [markdown]
# ## What are the rules?
#
# The table is the software's own registry. $J$ is the network Jacobian, $r$ the logit scale, $g$ the batch gradient; F and B are one forward and one backward pass of the
# batch. [docs/methods.md](../docs/methods.md) says what each source leaves open.

# %%
registry = [methods.describe(name) for name in methods.names()]
rules = pd.DataFrame(
    [(one.name, one.rule, one.cost, one.reference) for one in registry], columns=["", "rule", "cost", "source"]
)
rules.set_index("")

# %% [markdown]
# ## Where do they look?
#
# One network, trained by SGD on digits with 40% wrong labels until it has learnt most of what is right and little of what is wrong. At **these** weights every method
# is asked for its perturbation. Radii are the middle ones of the grid that the [scoreboard experiment](../experiments/scoreboard-digits.toml) tries, since a radius means something
# else in every rule. Methods that average over steps are first given one epoch of steps at the same weights.

# %%
SETTING = {
    "data": {
        "name": "digits",
        "train_size": 300 if SMALL else 1200,
        "test_size": 100 if SMALL else None,
        "validation_size": 200,
    },
    "noise": {"kind": "symmetric", "rate": 0.4},
    "model": {"name": "mlp", "options": {"hidden": [24] if SMALL else [128, 128]}},
    "optimizer": {"lr": 0.2},
    "training": {"epochs": 2 if SMALL else 20, "batch_size": 64, "threads": 1},
    "tracking": {"probe_size": 0},
}
experiment = tomllib.loads(Path("../experiments/scoreboard-digits.toml").read_text(encoding="utf-8"))


def middle(stated):
    """The fixed hyper-parameters of a method, and the middle one of those that are tried."""
    fixed = {key: value for key, value in stated.items() if key not in ("grid", "method")}
    grid = stated.get("grid", [{}])
    return fixed | grid[len(grid) // 2]


chosen = {name: (name, middle(stated)) for name, stated in experiment["methods"].items() if name in methods.names()}

with tempfile.TemporaryDirectory() as folder:
    run = noisesam.fit(SETTING, Path(folder) / "sgd")
    mechanism = training.mechanism_at_equal_weights(run, chosen)
    tensors = run.checkpoint().tensors
    fitted = analysis.memorisation(run).iloc[-1]
print(f"fitted: {fitted['clean_fitted']:.0%} of the right labels, {fitted['predicts_observed']:.0%} of the wrong ones")

# %% [markdown]
# The **logit weight** is the factor by which the perturbation changes the logit scale, the **Jacobian weight** the factor on the other half of the gradient. Each is shown for examples
# with a right and with a wrong label.

# %%
wide = mechanism.pivot_table(index="method", columns="group", values=["logit_weight", "jacobian_weight"]).dropna()
order = (wide["logit_weight"]["clean"] / wide["logit_weight"]["noisy"]).sort_values().index
with style():
    figure, axes = plt.subplots(1, 2, figsize=(7.8, 4.4), layout="constrained", sharey=True)
    for ax, quantity in zip(axes, ("logit_weight", "jacobian_weight"), strict=True):
        ax.axvline(1, color="#555555", linewidth=0.8)
        values = wide[quantity].loc[order]
        ax.hlines(range(len(order)), values["clean"], values["noisy"], color="#b0b0b0", linewidth=1.5, zorder=1)
        for group, label in (("clean", "right label"), ("noisy", "wrong label")):
            look = GROUP_STYLES[group]
            ax.plot(
                values[group], range(len(order)), linestyle="", marker=look.marker, color=look.color, markersize=5, label=label
            )
        ax.set_title(quantity.replace("_", " ").replace("jacobian", "Jacobian"))
        ax.set_xlabel("factor at w + ε")
        ax.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    axes[0].set_yticks(range(len(order)), [method_style(name).label for name in order])
    axes[0].legend(loc="lower right")

# %%
wide.loc[order[::-1]].round(3)

# %% [markdown]
# **Answer.** Every method leans the same way: right labels gain more than wrong ones. They differ in how far. A perturbation for each example (1-SAM, L-SAM and J-SAM share theirs)
# moves the logit scale of right labels several times as far as a perturbation that the batch shares; m-SAM, with a perturbation for a few examples each, stands between; a random direction does
# next to nothing. Mind the axis of the right picture: nobody changes the *size* of the Jacobian's half by more than a few percent.
#
# This is one moment of one run, at the weights of SGD. Which lean helps is a matter of training, and of which half of the gradient it reaches ([03_deep_mechanism](03_deep_mechanism.ipynb)).
#
# ## How different are the perturbations themselves?
#
# `cosine` is the agreement with SAM's own $\epsilon$ on one batch of these images; for methods with one $\epsilon_i$ per example it is the mean over the examples of a group. `norm` is the length of $\epsilon$, and `moved` the share
# of the weights that it moves at all.

# %%
noisy = data.add_label_noise(data.load("digits").subset(range(200 if SMALL else 1000)), "symmetric", 0.4, seed=0)
model = models.make("mlp", input_shape=(1, 8, 8), classes=10, hidden=tuple(SETTING["model"]["options"]["hidden"]))
model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
batch = (noisy.inputs[:128], noisy.labels[:128], noisy.index[:128])
wrong = noisy.is_noisy[:128]


def perturbation(name, options):
    """eps on the batch, one row per example (one row in all where it is shared), or None."""
    method = methods.make(name, model, **options)
    method.start_epoch(0)
    for inputs, labels, index in noisy.batches(64, generator=torch.Generator().manual_seed(0)):
        method.backward(inputs, labels, index=index)
    model.zero_grad()
    method.start_epoch(1)
    eps = method.perturbation(*batch)
    if eps is None:
        return None
    parts = []
    for key, parameter in model.named_parameters():
        part = eps.get(key, torch.zeros_like(parameter))
        parts.append(part.reshape(1, -1) if part.shape == parameter.shape else part.flatten(1))
    rows = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(rows, -1) for part in parts], 1)


sam = perturbation(*chosen["sam"])[0]
rows = []
for name, (kind, options) in chosen.items():
    eps = perturbation(kind, options)
    if eps is None:
        continue
    cosine = torch.nn.functional.cosine_similarity(eps, sam[None])
    group = (cosine[~wrong].mean(), cosine[wrong].mean()) if len(eps) > 1 else (cosine[0], cosine[0])
    shared = "batch" if len(eps) == 1 else f"{len(torch.unique(eps, dim=0))} of {len(eps)}"
    moved = float((eps != 0).double().mean())
    rows.append((name, shared, float(eps.norm(dim=1).mean()), moved, float(group[0]), float(group[1])))
columns = ["", "perturbations", "norm", "moved", "cosine, right label", "cosine, wrong label"]
pd.DataFrame(rows, columns=columns).set_index("").round(3)

# %% [markdown]
# **Answer.** `perturbations` counts the different ones in the batch. Most relatives of SAM look where SAM looks. ASAM, which stretches $\epsilon$ with the weights, looks elsewhere by half, and the random control
# nowhere in particular. The per-example methods are another matter: the uphill direction of one example has little in common with that of the batch, and least where the label is right. Most of
# those are fitted at these weights, so the batch's direction is made by the others.
#
# ## What do they cost?
#
# Counted, not claimed: how many examples went forward and backward in five epochs of steps, divided by the number of examples. Hyper-parameters that the experiment
# does not set are the software's defaults. A backward pass costs about two forward passes, so a *pass* is $(F + 2B)/3$, and SGD's is 1.

# %%
small = noisy.subset(range(128))
rows = []
for name, (kind, options) in chosen.items():
    method = methods.make(kind, model, **options)
    forward = backward = seen = 0
    for epoch in range(12):
        method.start_epoch(epoch)
        for inputs, labels, index in small.batches(16, generator=torch.Generator().manual_seed(epoch)):
            result = method.backward(inputs, labels, index=index)
            if epoch >= 7:  # by then every rule is in use
                forward, backward = forward + result.forward_examples, backward + result.backward_examples
                seen += len(labels)
    model.zero_grad()
    rows.append((name, forward / seen, backward / seen, (forward + 2 * backward) / (3 * seen), methods.describe(kind).cost))
cost = (
    pd.DataFrame(rows, columns=["method", "F", "B", "passes", "stated"])
    .set_index("method")
    .sort_values("passes", kind="stable")
)

with style():
    figure, ax = plt.subplots(figsize=(6.0, 4.4), layout="constrained")
    ax.barh(range(len(cost)), cost["passes"], color=[method_style(name).color for name in cost.index], height=0.7)
    ax.set_yticks(range(len(cost)), [method_style(name).label for name in cost.index])
    ax.invert_yaxis()
    ax.axvline(1, color="#555555", linewidth=0.8)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    ax.set_xlabel("passes per step (SGD: 1)")

# %%
cost.round(2)

# %% [markdown]
# SSAM-F draws its mask anew in every epoch, which costs most where epochs are as short as here. And passes are not seconds: the per-example methods make two, and their second one needs more arithmetic.
# Measured times stand in [benchmarks](../benchmarks/README.md).
#
# ## What do they keep of the gain?
#
# That takes training, tuning and seeds: the scoreboard experiment. Every method is tuned alike on noisy validation labels and trained with five seeds on digits with 40% wrong labels. Shown is the saved
# result: the share of 1-SAM's gain over SGD that each method keeps, against its passes.

# %%
saved = Path("../figures/scoreboard-digits.csv")
if saved.exists():
    scoreboard = pd.read_csv(saved)
    display(plotting.plot_scoreboard(scoreboard)[0].figure)
    names = {
        "early_mean": "test accuracy, stopped on noisy validation",
        "last_mean": "test accuracy, last",
        "early_gain": "share of gain, stopped",
        "last_gain": "share of gain, last",
    }
    display(scoreboard.set_index("method")[list(names)].rename(columns=names).round(3))
else:
    print("No saved scoreboard yet: noisesam scoreboard experiments/scoreboard-digits.toml makes it.")

# %% [markdown]
# **Answer.** 1 is 1-SAM, 0 is SGD. At the last epoch most relatives of SAM keep most of the gain, with radii tuned for each of them, and some of them at little more than SGD's price. What keeps none of it is
# the random direction, and L-SAM, which perturbs the logit scale alone. So the lean towards right labels in the logit scale, which the first picture shows for everyone, is not what
# makes the difference here. At early stopping the intervals are wide: five seeds do not order the methods there.
