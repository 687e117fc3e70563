"""What the claims C1 to C13 say and the rule of each, stated before any run. No torch."""

from __future__ import annotations

import math

from noisesam.reproduce.claims_gain import (
    CONVERGED,
    beside_robust_losses,
    grows_with_size,
    on_the_trajectory,
    one_sam_gains,
    sam_gains_less,
    under_parameterised,
)
from noisesam.reproduce.claims_mechanism import (
    MIN_METHODS,
    ORDERED,
    fits_clean_first,
    keeps_norms_small,
    sharpness_orders,
    slower_decay,
    weighs_low_loss,
)
from noisesam.reproduce.claims_share import jacobian_not_logit, regulariser_closes_half
from noisesam.reproduce.evidence import DEEP, KINDS, LINEAR, TWO_LAYER
from noisesam.reproduce.evidence_measures import DECAY
from noisesam.reproduce.findings import FACTOR, GAIN, Claim

_POINT = f"{100 * GAIN:g} point"
_LARGE = f"the interval lies above 0 and the estimate is at least {_POINT}"
_SMALL = f"the whole interval lies below {_POINT}"
_LARGE_FACTOR = f"the interval lies above 1 and the estimate is at least {math.exp(FACTOR):g}"
_SMALL_FACTOR = f"the whole interval lies below {math.exp(FACTOR):g}"

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "C1",
            "Under label noise 1-SAM's early-stopping test accuracy is above SGD's.",
            "every setting",
            f"1-SAM minus SGD at early stopping. Supported: {_LARGE}. Not supported: {_SMALL}.",
            KINDS,
            one_sam_gains,
        ),
        Claim(
            "C2",
            "Naive SAM, one perturbation for the batch, gains less than 1-SAM.",
            "every setting",
            f"1-SAM minus SAM at early stopping. Supported: {_LARGE}. Not supported: {_SMALL}.",
            KINDS,
            sam_gains_less,
        ),
        Claim(
            "C3",
            "1-SAM fits more correctly labelled examples before it fits the wrong labels.",
            "every setting",
            "Fraction of the correctly labelled training examples that is fitted at the onset of noise fitting (the "
            f"highest fraction where there is no onset), 1-SAM minus SGD. Supported: {_LARGE}. Not supported: {_SMALL}.",
            KINDS,
            fits_clean_first,
        ),
        Claim(
            "C4",
            "In linear models: the larger rho, the slower the decay of the clean/noisy ratio of 1-SAM's step terms.",
            "linear settings with several rho",
            f"Logarithm of the ratio on the method's own path, mean over the first {100 * DECAY:g}% of training. "
            f"Supported: from the smallest to the largest rho the factor is above 1 and at least {math.exp(FACTOR):g}, and "
            f"from each rho to the next it lies above {math.exp(-FACTOR):.2f}, all with their intervals. Not supported: one of "
            "these factors lies below its bound with its whole interval.",
            (LINEAR,),
            slower_decay,
        ),
        Claim(
            "C5",
            "1-SAM's logit scale up-weights examples of low loss in deep networks too.",
            "deep settings with tracked examples",
            "At SGD's weights, after step 0 up to early stopping: logit weight of the quarter of the tracked examples "
            f"with the lowest loss over that of the quarter with the highest. Supported: {_LARGE_FACTOR}. Not supported: "
            f"{_SMALL_FACTOR}.",
            (DEEP,),
            weighs_low_loss,
        ),
        Claim(
            "C6",
            "In deep networks J-SAM behaves like 1-SAM, and L-SAM like SGD.",
            "deep settings in which 1-SAM gains",
            "Share of 1-SAM's gain at early stopping, Fieller's interval. Supported: J-SAM's interval lies above 2/3 and "
            "L-SAM's below 1/3. Not supported: J-SAM's lies below 2/3 or L-SAM's above 1/3.",
            (DEEP,),
            jacobian_not_logit,
        ),
        Claim(
            "C7",
            "J-SAM and 1-SAM keep the last hidden activations and the last layer's weights smaller.",
            "settings with a hidden layer",
            "Norms at the end of training, SGD's as a multiple of 1-SAM's and of J-SAM's, four factors. Supported: of each "
            f"{_LARGE_FACTOR}. Not supported: of one {_SMALL_FACTOR}.",
            (TWO_LAYER, DEEP),
            keeps_norms_small,
        ),
        Claim(
            "C8",
            "Regularised SGD closes about half of the gap between SGD and 1-SAM under noise, and little of it without noise.",
            "settings with a hidden layer in which 1-SAM gains, with and without noise",
            "Share of 1-SAM's gain at early stopping, Fieller's interval. Supported: with noise it lies between 1/3 and "
            "2/3, without noise below 1/3. Not supported: one of them lies outside.",
            (TWO_LAYER, DEEP),
            regulariser_closes_half,
        ),
        Claim(
            "C9",
            "1-SAM's advantage grows with the size of the training set.",
            "settings with several sizes, in each of which SGD fits the wrong labels",
            "Gain of 1-SAM at early stopping with the largest training set minus that with the smallest. Supported: "
            f"{_LARGE}, and from each size to the next the gain does not fall by {_POINT} or more. Not supported: "
            f"{_SMALL}, or a fall of more with its whole interval.",
            KINDS,
            grows_with_size,
        ),
        Claim(
            "C10",
            "1-SAM's advantage is one of the trajectory: smaller or gone at convergence.",
            f"settings in which SGD and 1-SAM end with {100 * CONVERGED:g}% of the training labels fitted",
            f"Gain of 1-SAM at early stopping minus its gain at the end. Supported: {_LARGE}. Not supported: {_SMALL}.",
            KINDS,
            on_the_trajectory,
        ),
        Claim(
            "C11",
            "1-SAM's gain persists when the model is under-parameterised.",
            "models with fewer weights than training examples; SGD need not fit the wrong labels there, which they cannot hold",
            f"1-SAM minus SGD at early stopping, in each such model. Supported: in all, {_LARGE}. Not supported: in one, "
            f"{_SMALL}.",
            KINDS,
            under_parameterised,
        ),
        Claim(
            "C12",
            "Sharpness at the end of training, per example and of the batch, orders the methods by test accuracy.",
            f"settings with at least {MIN_METHODS} methods, probed at one rho",
            "Spearman's rank correlation over methods of low sharpness with test accuracy at the end, seed by seed. "
            f"Supported: for both forms the interval lies above 0 and the estimate is at least {ORDERED:g}. Not "
            f"supported: for one form the whole interval lies below {ORDERED:g}.",
            KINDS,
            sharpness_orders,
        ),
        Claim(
            "C13",
            "1-SAM with the plain loss stands level with SGD on robust losses, or above.",
            "settings with robust losses",
            "1-SAM minus SGD with the robust loss that has the highest noisy validation accuracy, at early stopping. "
            f"Supported: the interval lies above -{_POINT}. Not supported: it lies below.",
            KINDS,
            beside_robust_losses,
        ),
    )
}
"""The claims of docs/mechanism.md; every rule also asks for three seeds, and for an SGD that fits half of the wrong labels."""
