"""Worker processes that do not outlive the command that started them."""

import ctypes
import os
import signal
import sys


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however it went: an orphan would hold a GPU and the folder's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
