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
# # The smallest world in which it happens
#
# Networks learn what is right first and memorise wrong labels later. Sharpness-aware minimization (SAM) takes the gradient not at the weights $w$ but at weights moved uphill,
# $w + \epsilon$ with $\lVert\epsilon\rVert = \rho$, and wrong labels then do less harm. *Naive* SAM moves the weights once for the whole batch; *1-SAM* moves them for every example on its own.
#
# All of that can be seen in a linear model with two classes. This page shows it, and then shows three ways to be fooled by it.

# %%
# %matplotlib inline
import os

import matplotlib.pyplot as plt
import torch

from noisesam import data
from noisesam.plotting import GROUP_STYLES
from noisesam.plotting.style import style
from noisesam.plotting.toy import plot_toy_accuracy, plot_toy_ratios, plot_toy_traps
from noisesam.reproduce.toy import toy_grid

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing

# %% [markdown]
# ## What is there to learn, and what to memorise?
#
# A point of class $y = \pm 1$ has 1,000 coordinates. The first is $4y$: it alone tells the class. The others are Gaussian noise. Of 500 training points 40% carry the wrong label.

# %%
points = data.add_label_noise(data.gaussian(500, 1000, signal=4.0, noise_std=1.0, seed=0), "symmetric", 0.4, seed=0)
wrong = points.is_noisy
with style():
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for mask, group, label in ((~wrong, "clean", "right label"), (wrong, "noisy", "wrong label")):
        sign = 2 * points.labels[mask] - 1  # the observed label
        ax.plot(sign * points.inputs[mask, 0], sign * points.inputs[mask, 1], ".", color=GROUP_STYLES[group].color, label=label)
    ax.set_xlabel("observed label × first coordinate")
    ax.set_ylabel("observed label × second coordinate")
    ax.legend(loc="center")
print(f"{len(points)} points, {int(wrong.sum())} with a wrong label; mean squared length of the noise part: "
      f"{float(points.inputs[:, 1:].square().sum(1).mean()):.0f}, of the signal: {float(points.inputs[:, 0].square().mean()):.0f}")  # fmt: skip

# %% [markdown]
# **Read it** so: a model that uses the first coordinate gets every blue point right and every red one "wrong", which is the best that can be done. But there are more coordinates
# than points, so the noise is enough to fit every label, the wrong ones too. The accuracy on new, correctly labelled points has a closed form: with $w$ the weights,
# it is $\Phi\big(4 w_1 / \lVert w_{2:1000}\rVert\big)$. No test set is needed.

# %%
w = torch.zeros(1000)
w[0] = 1.0
for share in (0.0, 0.05, 0.2):
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * share
    noise[0] = 0.0
    accuracy = data.gaussian_test_accuracy(w + noise, signal=4.0, noise_std=1.0)
    print(f"w = first coordinate + noise of size {float(noise.norm()):.1f}: test accuracy {accuracy:.3f}")

# %% [markdown]
# ## Who gains?
#
# Gradient descent, 1-SAM and naive SAM from the same small random weights, 400 steps over the full batch. The star is the early-stopping peak.

# %%
toy = toy_grid(seeds=1, two_layer_seeds=1) if SMALL else toy_grid()
plot_toy_accuracy(toy.accuracy)[0].figure

# %%
peaks = toy.peaks[toy.peaks["setting"] == "linear"].set_index(["method", "rho"])
peaks[["seeds", "peak_mean", "peak_sd", "last_mean", "gain_mean", "gain_low", "gain_high"]].round(3)

# %% [markdown]
# **Answer.** 1-SAM gains, the more the larger $\rho$, and naive SAM hardly. But look where: **at the peak alone**. At the last step every method has memorised, and stands where gradient descent
# stands. `gain` is the peak minus that of gradient descent at the same seed, with its 95% interval.
#
# ## Why?
#
# Take the part of the step that one example contributes, its *step term*, and compare its mean size over correctly and over wrongly labelled examples. Below 1 the wrong labels drive the model.

# %%
plot_toy_ratios(toy.ratios)[0].figure

# %%
toy.ratio_table().set_index(["quantity", "method", "rho"]).round(2)

# %% [markdown]
# **Answer.** In gradient descent the right labels are soon fitted, their terms shrink, and the wrong ones take over: the ratio falls at once. Under 1-SAM it falls later, and the later the
# larger $\rho$. On a linear model 1-SAM is nothing but a shift of the margin that favours examples with low loss ([02_linear_theory](02_linear_theory.ipynb), T1 and T2),
# and early on those are the right ones.
#
# The right picture is a **different quantity**: the plain gradient at the weights that each method has reached. Under 1-SAM it falls fastest, *because* 1-SAM has
# fitted the right labels. Whoever plots this one concludes the opposite. The two are never mixed in noisesam.
#
# ## Three ways to be fooled
#
# The same toy from weights that are exactly zero; and with two linear layers instead of one. Each method over its radii, the star is the best one, chosen on the
# test accuracy itself.

# %%
plot_toy_traps(toy.runs)[0].figure

# %%
toy.traps.set_index(["trap", "method"])[["rho", "peak_mean", "peak_sd", "gain_mean", "gain_low", "gain_high"]].round(3)

# %% [markdown]
# **First trap: the start.** From zero weights gradient descent does very well without help, 1-SAM gains nothing, and naive SAM is best. At zero every example has the same logit scale, so the first
# step is the average over all examples, and that is a good direction already. A toy that starts at zero shows none of what it is meant to show.
#
# **Second trap: the model.** With two linear layers L-SAM, which perturbs the logit scale alone, beats 1-SAM and J-SAM, which perturbs the Jacobian alone. In the network of
# [03_deep_mechanism](03_deep_mechanism.ipynb) it is the other way round. So "L-SAM does not help" is a finding about a setting, not a law.
#
# **Third trap: the path.** Look at the ratios of the step terms once more, at the last step of the table. There 1-SAM with a middle radius may stand *below* gradient descent: it has fitted fewer
# wrong labels, so more of them are left to fit. Ratios along each method's own path cross. Compare early, cumulatively, or at equal weights.
#
# ## Is it only slower?
#
# 1-SAM also takes smaller steps where an example is fitted. A better accuracy at the same step could be an earlier moment of the same curve. So draw the test accuracy not against the step but against
# what has been learnt: the accuracy on correctly labelled training points.

# %%
linear = toy.accuracy[toy.accuracy["setting"] == "linear"]
with style():
    figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for (method, rho), own in linear.groupby(["method", "rho"], dropna=False, sort=False):
        if method == "sam":
            continue
        means = own.groupby("step")[["clean_fitted", "test_accuracy"]].mean()
        look = {"sgd": ("#000000", "gradient descent")}.get(method, (None, f"1-SAM, ρ = {rho:g}"))
        colour = look[0] or {0.03: "#f5c9a8", 0.1: "#e8945c", 0.3: "#d55e00"}[rho]
        ax.plot(means["clean_fitted"], means["test_accuracy"], color=colour, label=look[1])
    ax.set_xlabel("accuracy on correctly labelled training points")
    ax.set_ylabel("test accuracy")
    ax.legend(loc="upper left")

# %% [markdown]
# **Answer.** The curves do not lie on each other: at the same accuracy on what is right, 1-SAM has the better model. It is another way, not only a slower one.
