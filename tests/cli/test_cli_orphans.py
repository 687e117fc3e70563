"""Workers never outlive the command that started them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, time
from noisesam.experiments import processes
if __name__ == "__main__":
    with processes.pool(1, processes.make_queue()) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def is_running(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("ending", ["terminate", "kill"])
def test_a_worker_ends_with_its_parent_however_that_ends(ending):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_running(worker)
    getattr(parent, ending)()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    try:
        while is_running(worker):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    except FileNotFoundError:
        pass
