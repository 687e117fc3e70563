"""Memory that stays with the process: the difference between a step that computes and one that waits for the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys

# Names and numbers of glibc's <malloc.h>. The largest threshold it takes is 32 MiB.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**27))


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks instead of handing them back to the system and fetching them again at the next step.

    A training step allocates and frees the same tensors of a few megabytes over and over. By default each round goes
    through the system, which clears every page: a convolution over 64 images of 16x32x32 then takes up to four times as
    long. Nothing that is computed changes; the process stays as large as it ever was. The command line and `noisesam.fit`
    call it, and a training loop of your own should, once, before its first step. The library does not on import; a caller's
    own MALLOC_... settings are left alone.

    Returns:
        Whether it was set: only glibc on Linux knows these settings.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS)
