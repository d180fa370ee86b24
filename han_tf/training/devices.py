"""Devices and precision of training: one device, all GPUs of a machine, or several machines.

Every device (a replica in TensorFlow) has the same weights and takes its part of each batch. Its gradients are divided
by the number of replicas, so that their sum is the gradient of the mean over the batch.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from zlib import crc32

import tensorflow as tf

from han_tf.common.errors import UserError, first_line
from han_tf.layers.norm import synchronised_batch_norm

CLUSTER = "TF_CONFIG"
"""Environment variable that describes all workers and this one, see TensorFlow's documentation."""

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""Exceptions that TensorFlow raises in a worker if another one has died or is not ready yet."""

PAUSE = 5
"""Seconds that a worker waits before it restarts after the loss of another one."""

_EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'


def create_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a name, and lets GPU memory grow as needed.

    Call it before anything else is computed. ``multi_worker`` waits for all workers.

    Args:
      name: one of :data:`han_tf.training.config.STRATEGIES`.

    Raises:
      UserError: :data:`CLUSTER` is missing or malformed, or the worker cannot listen at its address.
    """
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # the GPUs are in use already, and their setting is fixed
    if name == "mirrored":
        return _mirrored()
    if name == "multi_worker":
        _check_cluster()
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.UnknownError, tf.errors.InvalidArgumentError, ValueError) as error:
            told = f"{CLUSTER} is {os.environ[CLUSTER]}"
            raise UserError(f"--strategy multi_worker: {first_line(error)} ({told})") from error
    return tf.distribute.get_strategy()


@functools.cache
def _mirrored() -> tf.distribute.Strategy:
    """Returns the only mirrored strategy of this process: two would use the same keys for different sums."""
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in found])


def _check_cluster() -> None:
    text = os.environ.get(CLUSTER, "")
    try:
        told = json.loads(text)
        addresses = told["cluster"][told["task"]["type"]]
        good = 0 <= told["task"]["index"] < len(addresses)
    except (ValueError, TypeError, LookupError):
        good = False
    if not good:
        raise UserError(f"--strategy multi_worker: {CLUSTER} is {text!r}, expected for example {_EXAMPLE}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the worker that evaluates and writes files."""
    cluster = strategy.cluster_resolver
    if cluster is None:
        return True
    first = "chief" if "chief" in cluster.cluster_spec().jobs else "worker"
    return (cluster.task_type, cluster.task_id) == (first, 0)


@contextmanager
def restarted_when_a_worker_is_lost(strategy: str) -> Iterator[None]:
    """Restarts this process with the same command if another worker is lost while the block runs.

    TensorFlow cannot continue with the remaining workers. They wait in :func:`create_strategy` until the lost one has
    been started again; then all continue from the newest checkpoint.

    Args:
      strategy: one of :data:`han_tf.training.config.STRATEGIES`; only ``multi_worker`` restarts.
    """
    try:
        yield
    except LOST:
        if strategy != "multi_worker":
            raise
        print("\nanother worker is lost; waiting for it, to resume from the newest checkpoint", flush=True)
        time.sleep(PAUSE)  # until its address is free, and until a worker that is just starting has failed, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def mean_over_workers(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the mean of ``value`` over all workers; each waits for all others."""
    if strategy.cluster_resolver is None:
        return value
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(value, tf.float64))
    return float(strategy.reduce("MEAN", values, axis=None))


@contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Makes the other workers wait until the chief has run the block."""
    if not is_chief(strategy):
        mean_over_workers(strategy, 0)
    yield
    if is_chief(strategy):
        mean_over_workers(strategy, 0)


def check_agreement(strategy: tf.distribute.Strategy, state: Any, what: str) -> None:
    """Raises UserError, which names ``what`` differs, unless all workers have the same ``state``, a JSON value."""
    digits = float(crc32(json.dumps(state, sort_keys=True).encode()))
    if mean_over_workers(strategy, digits) != digits:
        raise UserError(f"the workers differ in {what}, expected the same")


def check_precision(precision: str) -> None:
    """Raises UserError for float16 without a GPU: CPUs are slow in it, and TensorFlow crashes on some."""
    if precision == "mixed_float16" and not tf.config.list_physical_devices("GPU"):
        raise UserError(f"--precision {precision}, but no GPU is here; expected float32 or mixed_bfloat16")


@contextmanager
def computing(precision: str, synchronised: bool) -> Iterator[None]:
    """Makes networks that are created in the block compute in ``precision``; their weights stay float32.

    Args:
      precision: one of :data:`han_tf.training.config.PRECISIONS`.
      synchronised: whether batch norm uses the statistics of all replicas' images.
    """
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        with synchronised_batch_norm() if synchronised else ExitStack():
            yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def own_part(batch: tf.Tensor) -> tf.Tensor:
    """Returns this replica's part of a batch; the parts are equal in size and in the order of the replicas."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return batch
    size = batch.shape[0] // replica.num_replicas_in_sync
    return batch[replica.replica_id_in_sync_group * size :][:size]


def whole(part: tf.Tensor) -> tf.Tensor:
    """Returns the parts of all replicas as one batch, the reverse of :func:`own_part`; gradients reach all replicas."""
    replica = tf.distribute.get_replica_context()
    return part if replica.num_replicas_in_sync == 1 else replica.all_gather(part, axis=0)
