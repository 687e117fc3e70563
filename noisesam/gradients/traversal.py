"""The modules of a model, as often as a step has to look at them."""

from __future__ import annotations

from torch import nn


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that `model.modules()` yields, in its order.

    torch passes every module up through a generator for each level above it and puts its name together; a step asks several
    times, and on a small model that is a good part of what it costs.

    Example:
        >>> from torch import nn
        >>> shared = nn.Linear(2, 2)
        >>> model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared)
        >>> [type(module).__name__ for module in modules_of(model)]
        ['Sequential', 'Sequential', 'Linear', 'ReLU']
    """
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(found.values())
