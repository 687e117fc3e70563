"""Operations of which no function of torch tells: in scripted functions, in extensions, where a model switches overrides off.

Below its functions torch hands every operation to its kernels one by one, and there all of them can be seen. To look there at
every step would cost as much as a small model takes; it is done in comparisons, and in every step of a model that has such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.data_sizes import dispatches, sized_by_values
from noisesam.gradients.engine.tape import Tape

_ENTRYWISE = {"masked_fill_", "_to_copy", "copy_"}
"""Operations that work entry by entry, and that torch does not call so."""


class Unheard(TorchDispatchMode):
    """While active, operations that have not come by way of `Interception`, entered after this, are looked at here.

    Args:
        tape: Where it is noted if there are such, and if values that the data choose decide there whose rows are whose.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape
        # While a mode answers for a function it is off the stack of modes; on it, nobody has been asked.
        self._modes_outside = torch._C._len_torch_function_stack()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; look at it where no function has been heard."""
        kwargs = kwargs or {}
        if torch._C._len_torch_function_stack() <= self._modes_outside:
            return func(*args, **kwargs)
        tape, tensors = self._tape, tensors_in((args, kwargs))
        tape.unheard = True
        with torch._C.DisableTorchFunction():  # it is of the model's inside, and no function that the model has called
            result = tape.constants.call(func, args, kwargs, tensors)
        if isinstance(result, (bool, int, float)):
            tape.way.read(result)
        if not tape.sized_by_data and _chooses(func, args, kwargs, result, tensors, tape):
            tape.sized_by_data = f"{func.overloadpacket.__name__!r}"
        return result


def _chooses(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, tensors: list[Tensor], tape: Tape
) -> bool:
    """Whether the data decide by this how many rows there are, or what is one; entry by entry all stay where they are."""
    fixed = tape.constants.fixed
    if torch.Tag.dynamic_output_shape in func.tags and all(value.is_floating_point() for value in tensors):
        return any(value not in fixed for value in tensors)  # fractions without their doubles, say
    if not any(value.is_floating_point() for value in tensors_in((result,))):
        return False
    if torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in _ENTRYWISE:
        return dispatches(func, result, tensors, fixed, tape.examples)
    return sized_by_values(func, args, kwargs, fixed, tape.examples)
