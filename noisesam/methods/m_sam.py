"""SAM over shards of m examples."""

from __future__ import annotations

from typing import Any

from torch import nn

from noisesam.methods.sam import SAM


class MSAM(SAM):
    """SAM with one eps per shard of `examples_per_shard` consecutive examples, averaged by shard size.

    m counts the EXAMPLES of a shard: m = 1 is 1-SAM, m = the batch is SAM. Data-parallel training that does not
    synchronise the ascent gradient is m-SAM with m = the batch of one worker; here it is an explicit choice.

    Args:
        model: Any module.
        rho: Radius of the perturbation, in the units of the weights.
        examples_per_shard: Examples that share one eps.
        options: As of `SAM`.

    Example:
        >>> import torch
        >>> method = MSAM(torch.nn.Linear(3, 2), rho=0.05, examples_per_shard=2)
        >>> method.backward(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])).forward_examples
        10

    References:
        Foret et al. 2021, arXiv 2010.01412 (section 4.1); Behdin et al. 2022, "Improved Deep Neural Network Generalization
        Using m-Sharpness-Aware Minimization", arXiv 2212.04343.
    """

    name = "m-sam"
    title = "SAM over shards of m examples"
    rule = "SAM of every shard of m examples, averaged by shard size"
    reference = "Behdin et al. 2022, arXiv 2212.04343"

    def __init__(self, model: nn.Module, *, rho: float = 0.05, examples_per_shard: int = 8, **options: Any) -> None:
        super().__init__(model, rho=rho, examples_per_shard=examples_per_shard, **options)
