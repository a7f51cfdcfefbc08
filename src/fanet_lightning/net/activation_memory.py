"""Memory of a network's activations, kept by the process on CPUs instead of fetched from the system on every pass.

glibc hands freed megabytes back at once, and the next forward pass faults them in again page by page: 5,300 page faults
a pass for the light network at 640 × 480, a fifth of its time. ``benchmarks/light_detection.py`` shows both sides.
"""

import ctypes
import platform

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# More than a training step of twelve 320 × 320 images lets go of at once; mallopt takes a C int.
KEPT_BYTES = 2**30


def keep_activation_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Let this process keep up to ``kept_bytes`` of freed memory for the next pass. Results are not touched.

    It holds for all of the process, until it ends; calling it again is harmless. What is kept counts as this process's,
    so others see less memory available.

    Returns:
        Whether it took effect: only glibc (Linux) has the switch, other allocators stay as they are.

    Raises:
        ValueError: ``kept_bytes`` is not 1 … 2³¹ - 1.
    """
    if not 1 <= kept_bytes < 2**31:
        raise ValueError(f"kept_bytes={kept_bytes}: give 1 … {2**31 - 1}")
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Either one alone switches glibc's own adjustment of both off.
    settings = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    return all(mallopt(ctypes.c_int(what), ctypes.c_int(kept_bytes)) == 1 for what in settings)
