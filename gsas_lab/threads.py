"""How many cores there are, and how the threads of torch's operations wait for one another on them.
Standard library only.

Each of a training step's hundreds of small operations is shared by threads that meet at its end. By
default, those that are ready early turn in a loop for milliseconds (GNU OpenMP) or 0.2 s (LLVM's),
which is fastest on a machine that has nothing else to do. Beside another busy process the loops take
the core that the last thread is waiting for: five to twenty times slower (docs/LOG.md). So they are
told to sleep, GNU's after a few microseconds, unless the user has said how they are to wait. OpenMP
reads that when torch is loaded, and never again.
"""

import os
import sys

CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
SPINS = "500"  # beside another process no slower than none, alone 5 % faster


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def wait_passively() -> None:
    """OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT for this process and those that it starts.

    Where one of CHOSEN_BY is set, nothing. Where torch is loaded already it is too late for this
    process: the log says so.
    """
    if any(name in os.environ for name in CHOSEN_BY):
        return
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS}
    if "torch" in sys.modules:
        import logging  # here: whoever imports gsas_lab from a shell may press Ctrl-C meanwhile

        logging.getLogger(__name__).info(
            "torch was imported before gsas_lab: its threads spin while they wait, which is many "
            "times slower beside another busy process; import gsas_lab first."
        )
