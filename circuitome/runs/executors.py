"""Where many independent jobs run: processes of this machine, a Ray cluster, or Slurm. What they give is the same.

An executor takes a function of a module and what to call it with, and yields (number of the call, what it gave) as
calls end. Calls whose worker is lost are made again, so a call must go on from what it has left half done.
"""

import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from circuitome.errors import InputError, WorkersLostError

RETRIES = 3
"""How often a call is made again whose worker was lost."""
Call = Callable[[Any], Any]
Ended = Iterator[tuple[int, Any]]


def local(call: Call, given: Sequence[Any], *, workers: int, address: str | None = None, gpus: float = 0) -> Ended:
    """In `workers` processes that share the machine's cores evenly, each of which takes one call after another.

    One worker is this process itself. Raises `WorkersLostError` where workers are lost more than `RETRIES` times
    without a call that came to its end.
    """
    if address is not None or gpus:
        raise InputError("Local processes take no --address and no --gpus; they see all devices of this machine.")
    if workers == 1:
        yield from enumerate(map(call, given))
        return
    left, lost = dict(enumerate(given)), 0
    while left:
        threads = max(1, torch.get_num_threads() // workers)
        context = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA
        # Workers that are ended or lost remove nothing: what they left in their temporary folder goes with it.
        temporary = tempfile.TemporaryDirectory(prefix="circuitome-", ignore_cleanup_errors=True)
        given_each = (threads, temporary.name)
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=given_each)
        try:
            futures = {pool.submit(call, one): i for i, one in left.items()}
            for future in _as_they_end(futures):
                result = future.result()
                lost = 0
                left.pop(futures[future])
                yield futures[future], result
        except BrokenProcessPool:
            lost += 1
            if lost > RETRIES:
                raise WorkersLostError(
                    f"Workers were lost {lost} times one after another, {len(left)} jobs are left. Is there enough "
                    "memory for so many at the same time? The same command with --resume goes on."
                ) from None
        finally:
            _stop(pool)
            temporary.cleanup()


def _as_they_end(futures: dict[Future[Any], int]) -> Iterator[Future[Any]]:
    """Futures as they end; a lost worker ends all, so those that had ended by then come first."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from sorted(done, key=lambda future: isinstance(future.exception(), BrokenProcessPool))


def _start(threads: int, temporary: str) -> None:
    torch.set_num_threads(threads)
    tempfile.tempdir = temporary


def _stop(pool: ProcessPoolExecutor) -> None:
    """End its processes, also in the middle of a call."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
        process.join()


def on_ray(call: Call, given: Sequence[Any], *, workers: int, address: str | None = None, gpus: float = 0) -> Ended:
    """On the Ray cluster at `address`, or on one of `workers` cores that is started here and ended again.

    Each call takes a core and `gpus` GPUs. Raises `InputError` where Ray is not installed or the cluster not there.
    """
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed. Install it with: pip install 'circuitome[ray]'") from None
    cores = None if address else workers
    try:
        ray.init(
            address=address, num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"There is no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
    try:
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(call)
        calls = {remote.remote(one): i for i, one in enumerate(given)}
        while calls:
            done, _ = ray.wait(list(calls), num_returns=1)
            yield calls.pop(done[0]), ray.get(done[0])
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise WorkersLostError(
            f"A worker of Ray was lost again and again: {str(error).splitlines()[0]} The same command with --resume "
            "goes on."
        ) from None
    finally:
        ray.shutdown()


def on_slurm(call: Call, given: Sequence[Any], *, workers: int, address: str | None = None, gpus: float = 0) -> Ended:
    """As one array of Slurm jobs, at most `workers` at a time; `address` names a partition, or is local to try it out.

    Raises `InputError` where submitit is not installed or there is no Slurm.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("submitit is not installed. Install it with: pip install 'circuitome[slurm]'") from None
    here = address == "local"
    try:
        executor = submitit.AutoExecutor(folder=".slurm/%j", cluster="local" if here else "slurm")
    except RuntimeError as error:
        raise InputError(f"There is no Slurm here: {str(error).splitlines()[0]}") from None
    executor.update_parameters(gpus_per_node=int(gpus), timeout_min=24 * 60)
    if not here:
        executor.update_parameters(slurm_array_parallelism=workers, slurm_partition=address)
    jobs = executor.map_array(call, list(given))
    for job in submitit.helpers.as_completed(jobs):
        yield jobs.index(job), job.result()


EXECUTORS: dict[str, Callable[..., Ended]] = {"local": local, "ray": on_ray, "slurm": on_slurm}
"""By name."""
