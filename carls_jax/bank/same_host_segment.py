"""Memory that a server shares with one client: made by the server, of a size nobody can change.

Either side may write it at any time, so whoever reads copies first and believes nothing twice.
Without the seals a client could truncate it, and the next access would end the server (SIGBUS).
"""

from __future__ import annotations

import fcntl
import mmap
import os

# Linux alone has them; elsewhere banks use gRPC.
IS_SUPPORTED = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def make_segment(num_bytes: int) -> int:
    """Returns a file descriptor of new memory, sealed, all of it there.

    Raises:
      OSError: The system has no room, or does not let this process share memory.
    """
    descriptor = os.memfd_create("carls-jax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Otherwise a page that the system cannot give later would end whoever writes it.
        os.posix_fallocate(descriptor, 0, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def map_segment(descriptor: int, num_bytes: int) -> memoryview:
    """Returns the memory behind a descriptor; it lives as long as this view or a part of it.

    Raises:
      OSError: It is of another size, or not sealed, or this process has no room for it.
    """
    is_sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() == _seals()
    if not is_sealed or os.fstat(descriptor).st_size != num_bytes:
        raise OSError(f"the segment is not {num_bytes} sealed bytes")
    return memoryview(mmap.mmap(descriptor, num_bytes))


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
