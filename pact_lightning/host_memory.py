"""The C library's allocator, told to keep what training on a CPU frees and wants again a moment later."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's numbers for mallopt
_LARGEST_FROM_HEAP = 2**30
_GROW_BY = 2**26


def keep_freed_memory() -> bool:
    """Makes glibc serve large tensors from its heap and never give the heap back [D].

    By default every tensor over 32 MiB is mapped anew, so that each step pays a page fault for every 4 KiB of its
    activations. The process then holds its peak memory until it ends.

    Returns:
        Whether the allocator took it; False where it is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Glibc before 2.35 refuses a threshold this large; without it, keeping the heap would gain nothing.
    if not mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_TOP_PAD, _GROW_BY))
