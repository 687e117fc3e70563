"""The arithmetic of the training steps: float32, TF32 or bfloat16, set for the length of a step and then put back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from noisesam.errors import ConfigurationError
from noisesam.training.values import missing_tf32

_TF32_CAPABILITY = (8, 0)
"""The first CUDA architecture whose tensor cores compute in TF32; older devices ignore the flags without a word."""


@contextlib.contextmanager
def step_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision for the length of a block, and leave torch's settings as they were, also after an exception.

    "float32" takes every product in float32: on a CUDA device TF32 is switched off, which torch has on for convolutions
    unless it is told otherwise. "tf32" lets matrix products and convolutions of float32 numbers round their factors to 10 bits
    of mantissa and sum in float32. "bfloat16" is torch.autocast: products round their factors to 7 bits of mantissa; weights,
    gradients, normalisation, losses and the norms of a method's rule stay in float32.

    Args:
        precision: "float32", "tf32" or "bfloat16", as `training.precision`.
        device: Where the model is.

    Raises:
        ConfigurationError: TF32 on a device that is no CUDA device; nothing is computed in another precision instead.

    Example:
        >>> a = torch.ones(1, 1)
        >>> with step_arithmetic("bfloat16", torch.device("cpu")):
        ...     (a @ a).dtype
        torch.bfloat16
        >>> (a @ a).dtype
        torch.float32
    """
    if precision == "tf32" and device.type != "cuda":
        raise missing_tf32(str(device))
    with contextlib.ExitStack() as settings:
        if device.type == "cuda":
            settings.enter_context(tf32_allowed(precision == "tf32"))
        if precision == "bfloat16":
            settings.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        yield


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in CUDA's matrix products and in cuDNN for the length of a block; the settings are then put back.

    Example:
        >>> before = torch.backends.cuda.matmul.allow_tf32
        >>> with tf32_allowed(not before):
        ...     torch.backends.cuda.matmul.allow_tf32 is (not before), torch.backends.cudnn.allow_tf32 is (not before)
        (True, True)
        >>> torch.backends.cuda.matmul.allow_tf32 is before
        True
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    operators = (matmul, cudnn.conv, cudnn.rnn)
    switches = [(place, _switch(place)) for place in (matmul, cudnn)]
    precisions = [operator.fp32_precision for operator in operators]
    try:
        # The older switches set the newer settings too; the other way round torch refuses to read the older ones.
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        yield
    finally:
        for place, before in switches:
            if before is not None:
                place.allow_tf32 = before
        for operator, precision in zip(operators, precisions, strict=True):
            operator.fp32_precision = precision


@contextlib.contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Let cuDNN choose deterministic algorithms, by rule and not by timing, for the length of a block."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


def refuse_missing_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not compute in: torch itself would fall back on another one.

    Args:
        precision: "float32", "tf32" or "bfloat16".
        device: A device of this machine.

    Raises:
        ConfigurationError: The device has no such arithmetic.
    """
    if precision == "float32":
        return
    if precision == "tf32":
        missing = device.type != "cuda" or lacks_tf32(torch.cuda.get_device_capability(device), hip=torch.version.hip)
    else:
        missing = lacks_bfloat16(device)
    if missing:
        raise missing_tf32(str(device)) if precision == "tf32" else _no_bfloat16(str(device))


def lacks_tf32(capability: tuple[int, int], *, hip: str | None = None) -> bool:
    """Say whether a CUDA device of this compute capability ignores the TF32 flags; so does torch's build for AMD devices.

    Example:
        >>> lacks_tf32((7, 5)), lacks_tf32((9, 0))
        (True, False)
    """
    return capability < _TF32_CAPABILITY or hip is not None


def lacks_bfloat16(device: torch.device) -> bool:
    """Say whether autocast in bfloat16 is emulated or switched off on this device."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return not torch.is_autocast_enabled(device.type)
        except RuntimeError:  # a kind of device without autocast
            return True


def _no_bfloat16(device: str) -> ConfigurationError:
    return ConfigurationError(
        f'training.precision = "bfloat16" with training.device = "{device}"',
        expected="a device that computes in bfloat16",
        remedy='Use training.precision = "float32".',
    )


def _switch(place: Any) -> bool | None:
    """Return an older switch; None where the caller has set the newer settings in a way that it cannot express."""
    try:
        return bool(place.allow_tf32)
    except RuntimeError:
        return None
