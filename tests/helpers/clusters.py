"""Real clusters on this machine, and the death of one of their workers."""

import contextlib
import os
import signal
import threading
import time

import psutil


@contextlib.contextmanager
def cluster(backend):
    """Two workers, connected to."""
    if backend == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
    elif backend == "dask":
        import distributed

        local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        with local, distributed.Client(local):
            yield
    else:
        yield


@contextlib.contextmanager
def a_worker_killed(folder, once):
    """Kill the first process that has a file of a flow open, as soon as `once()` says so; yields who was killed."""
    killed, over = [], threading.Event()

    def watch():
        while not killed and not over.is_set():
            time.sleep(0.02)
            if not once():
                continue
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    if any(each.path.startswith(str(folder)) for each in process.open_files()):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        break

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
