"""Worker processes that start with one thread each and never outlive whoever started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from noisesam.experiments.work import report_to

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the libraries under torch and numpy when they are loaded: two workers on two cores must not start four threads."""


def make_queue() -> Any:
    """Return the queue on which the workers of one pool tell what they do."""
    return multiprocessing.get_context("spawn").Queue()


@contextmanager
def pool(workers: int, reports: Any) -> Iterator[ProcessPoolExecutor]:
    """Spawned workers that start with one thread each and are gone, whatever happens; the queue is closed with them.

    Spawned and not forked: a fork would copy the threads' locks of a parent that has used torch. So, as always with spawned
    processes, a script that comes here needs `if __name__ == "__main__":`.

    Args:
        workers: How many.
        reports: From `make_queue`.

    Yields:
        The pool. When the block ends, its work is waited for; when the block raises, the workers are ended at once.
    """
    threads = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(threads, "1"))  # inherited by the workers, which are started one by one at submit
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(reports,))
    try:
        yield executor
        executor.shutdown()
    except BaseException:
        processes = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    finally:
        for name, value in threads.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reports.close()
        reports.cancel_join_thread()


def _start(reports: Any) -> None:
    """In a worker, before its first run."""
    import signal

    from noisesam.allocation import keep_freed_memory

    report_to(reports)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the workers
    keep_freed_memory()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """End this worker when its parent is gone, however that ended: nobody would read its runs or stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # As safe as a kill: whatever was flushed is whole.
