"""A process of its own for commands that run files: what a file does to its runtime ends that process alone."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

_CODE = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ()
_PR_SET_PDEATHSIG = 1


def continue_in_own_process(what: str) -> None:
    """Fork; the child returns and goes on with the command, and this process waits for it and exits as it does.

    Runtimes do not harden their kernels against a hostile file: PyTorch divides the smallest integer by -1, and the
    processor ends the process. Of the child that is one line and the exit code 1. The child can take no more memory
    than the machine has free. To be called before a library has started threads.

    Args:
        what: The file that is run, for the message.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _bound()
        return
    # The terminal interrupts both: the child says so. What ends this process ends the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: os.kill(child, received))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if -code in _PASSED_ON:
        code = 128 - code
    elif code < 0:
        memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        print(
            f"error: {what}: running it ended its process by {signal.Signals(-code).name}{memory}. The file is damaged "
            f"or hostile, or its runtime is faulty.",
            file=sys.stderr,
        )
        code = _CODE
    sys.exit(code)


def _bound() -> None:
    import resource  # Windows has neither this nor fork.

    if sys.platform == "linux":
        # Whoever kills the waiting process means this one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    machine = _available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    least = min((limit for limit in (machine, soft, hard) if limit != resource.RLIM_INFINITY), default=machine)
    resource.setrlimit(resource.RLIMIT_DATA, (least, hard))


def _available() -> int | None:
    """Bytes of memory that can be had without swapping; ``None`` where the system does not tell."""
    table = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text(encoding="utf-8") if table.exists() else "")
    return 1024 * int(found[1]) if found else None
