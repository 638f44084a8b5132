"""Who encodes the shards: this process, or workers on Ray. Both write the same files."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

from gritvq.bulk.folder import ShardFolder
from gritvq.bulk.work import ROWS, Shard, Work, count
from gritvq.lazy import optional
from gritvq.tokens import TokenRow

__all__ = ["encode_here", "encode_on_ray", "encode_rows", "encode_shards"]

_logger = logging.getLogger(__name__)

_AHEAD = 2  # shards of a worker that are in memory: the one in work and the next
_RETRIES = 5  # deaths of a worker with a shard before the whole is given up
_STORE = 256 * 2**20  # bytes of Ray's object store, for the work and shards of texts
_SAID = 100  # warnings that are kept of a shard
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the warning about a future default
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray says of workers that die
}


class Made(NamedTuple):
    """A shard that is encoded: its number, and what its file holds."""

    number: int
    counts: Counter[str]


Engine: TypeAlias = Callable[[Work, ShardFolder, Iterator[Shard], Callable[[int], object]], Iterator[Made]]


def encode_rows(work: Work, counts: Counter[str], progress: Callable[[int], object] = int) -> Iterator[TokenRow]:
    """Encode all shards in this process as one stream of rows, for a single file; nothing holds all of them.

    Args:
        work: What to encode.
        counts: Counts what the rows hold, see :func:`gritvq.bulk.count`.
        progress: Called with the number of samples that are done.

    Raises:
        ValueError: At the end, if there was no row.
    """
    for shard in work.shards(ROWS):
        yield from count(work.rows(shard, progress), counts)
    if not counts:
        raise work.empty()


def encode_shards(
    work: Work,
    out: str | os.PathLike[str],
    rows_per_file: int = ROWS,
    engine: Engine | None = None,
    progress: Callable[[int], object] = int,
) -> Counter[str]:
    """Encode all shards into a folder of token files; a run that was interrupted goes on where it was.

    Shards whose files are there are skipped, and made again if damaged. When all are there, they appear in the folder
    with ``manifest.json``. A folder that is finished is left as it is, unless one of its files is lost: that one is
    made again. A damaged one is made again once it is removed.

    Args:
        work: What to encode.
        out: A folder: new, empty, or of an earlier run with the same tokenizer, data and settings.
        rows_per_file: Rows of each file, at most.
        engine: :func:`encode_here`, by default, or :func:`encode_on_ray` with its arguments.
        progress: Called with the number of samples that are done.

    Returns:
        What the files hold, see :func:`gritvq.bulk.count`.

    Raises:
        ValueError: If the folder holds something else, or the data cannot be read.
    """
    folder = ShardFolder(out, work.plan(rows_per_file))
    if folder.totals is not None:
        return folder.totals
    found: dict[int, Counter[str]] = {}

    def missing() -> Iterator[Shard]:
        for shard in work.shards(rows_per_file):
            counts = folder.counts(shard.number)
            if counts is None:
                yield shard
            else:
                found[shard.number] = counts
                progress(len(shard.samples))

    try:
        folder.begin()
        found.update((engine or encode_here)(work, folder, missing(), progress))
        if not any(found.values()):
            raise work.empty()
        folder.finish([found[number] for number in range(len(found))])
    except BaseException:
        folder.clear()
        raise
    assert folder.totals is not None
    return folder.totals


def encode_here(
    work: Work, folder: ShardFolder, shards: Iterator[Shard], progress: Callable[[int], object] = int
) -> Iterator[Made]:
    """Encode shards in this process, one after the other."""
    for shard in shards:
        yield Made(shard.number, folder.write(shard.number, work.rows(shard, progress)))


def encode_on_ray(
    work: Work,
    folder: ShardFolder,
    shards: Iterator[Shard],
    progress: Callable[[int], object] = int,
    *,
    num_workers: int | None = None,
    device: str = "cpu",
) -> Iterator[Made]:
    """Encode shards on Ray, in worker processes of one thread each; one that dies is started again with its shard.

    Ray is started on this machine, unless the caller has done so, or ``RAY_ADDRESS`` names a cluster, whose machines
    must all see data and folder. At most two shards per worker are in memory.

    Args:
        work: What to encode.
        folder: Where files are written, by the workers.
        shards: The shards to encode.
        progress: Called with the number of samples that are done.
        num_workers: Worker processes; as many as there are CPUs, or GPUs, if None.
        device: ``"cpu"``, or ``"cuda"`` for a GPU per worker.

    Raises:
        ValueError: If Ray is missing, a worker dies over and over, or the data cannot be read.
    """
    ray = quiet_ray()
    with cluster(ray, num_workers):
        resource = "GPU" if device == "cuda" else "CPU"
        there = int(ray.cluster_resources().get(resource, 0))
        num_workers = num_workers or there
        if not 1 <= num_workers <= there:
            raise ValueError(
                f"expected a {resource} for each worker, got {num_workers} workers and {there} of them; give another "
                "--num_workers"
            )
        options = {"num_cpus": 1, "num_gpus": int(device == "cuda")}
        worker = ray.remote(**options, max_restarts=-1, max_task_retries=_RETRIES)(_Worker)
        shared = [ray.put(work)]  # in a list, so that only the first shard of a worker fetches it
        workers = [worker.remote(folder, device, os.getcwd()) for _ in range(num_workers)]
        free = workers * _AHEAD
        waiting: dict[Any, Any] = {}
        try:
            for shard in shards:
                if not free:
                    yield _next(ray, waiting, free, progress)
                chosen = free.pop()
                waiting[chosen.encode.remote(shared, shard)] = chosen, len(shard.samples)
            while waiting:
                yield _next(ray, waiting, free, progress)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            raise ValueError(
                f"expected workers that stay alive, got one that ended {_RETRIES + 1} times with the same shard "
                f"({str(error).splitlines()[0]}); if memory is short, give a smaller --batch_size or --num_workers"
            ) from error
        finally:
            for one in workers:  # after an error they would still write what they have begun
                ray.kill(one)


def quiet_ray() -> Any:
    """Ray, imported after the settings that it reads then."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    return optional("ray", "distributed")


def _next(ray: Any, waiting: dict[Any, Any], free: list[Any], progress: Callable[[int], object]) -> Made:
    """The next shard that is done."""
    (done,), _ = ray.wait(list(waiting), num_returns=1)
    made, said = ray.get(done)
    worker, samples = waiting.pop(done)
    free.append(worker)
    for text in said:
        _logger.warning("%s", text)
    progress(samples)
    return made


class _Worker:
    """What runs in a worker process."""

    work: Work | None = None

    def __init__(self, folder: ShardFolder, device: str, place: str) -> None:
        os.chdir(place)  # where relative paths begin
        self.folder, self.device = folder, device

    def encode(self, shared: list[Any], shard: Shard) -> tuple[Made, list[str]]:
        """Encode a shard and write its file; returns what it holds, and warnings."""
        if self.work is None:
            self.work = cast(Work, optional("ray", "distributed").get(shared[0])).to(self.device)
        with _heard() as said:
            counts = self.folder.counts(shard.number)  # a worker may have died after it had written
            if counts is None:
                counts = self.folder.write(shard.number, self.work.rows(shard))
        return Made(shard.number, counts), said[:_SAID]


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Warnings of a block, which nobody would see in a worker."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger("gritvq")
    ours.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: said.append(str(message))
            yield said
    finally:
        ours.removeHandler(handler)


@contextlib.contextmanager
def cluster(ray: Any, num_workers: int | None) -> Iterator[None]:
    """Ray as the caller has started it, or started here and ended again."""
    if ray.is_initialized():
        yield
        return
    start = partial(ray.init, logging_level=logging.ERROR, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as logs:
        try:
            if os.environ.get("RAY_ADDRESS"):
                start()
            else:
                start(num_cpus=num_workers, include_dashboard=False, object_store_memory=_STORE, _temp_dir=logs)
            yield
        finally:
            ray.shutdown()
