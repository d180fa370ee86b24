"""What a network is trained on: one device, all of this machine, or those of several; in which precision.

Every device (a replica, in TensorFlow's words) has the same weights and takes its part of each batch. What it adds to
the gradients is divided by the number of replicas, so that their sum is the gradient of the mean over the batch.
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

from han_tf.common.errors import UserError
from han_tf.layers.norm import synchronised_batch_norm

CLUSTER = "TF_CONFIG"
"""Environment variable that tells a worker of the others and of itself, see TensorFlow's documentation."""

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""What TensorFlow raises in a worker when another one has died or is not ready yet."""

PAUSE = 5
"""Seconds until a worker that has lost another one starts again."""

_EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'


def create_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a name, and lets GPUs take their memory as they need it.

    Call it before anything else is computed. ``multi_worker`` waits for all workers.

    Args:
      name: one of :data:`han_tf.training.config.STRATEGIES`.

    Raises:
      UserError: :data:`CLUSTER` does not tell what a worker has to know, or the worker cannot listen at its address.
    """
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # who has used the devices before has decided on their memory
    if name == "mirrored":
        return _mirrored()
    if name == "multi_worker":
        _check_cluster()
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.UnknownError as error:
            reason = next(iter(str(error).splitlines()), "unknown error")
            raise UserError(f"--strategy multi_worker: {reason} ({CLUSTER} is {os.environ[CLUSTER]})") from error
    return tf.distribute.get_strategy()


@functools.cache
def _mirrored() -> tf.distribute.Strategy:
    """Returns the one of this process: two would take the same keys for different sums."""
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
    """Returns whether this process is the one of all workers that evaluates and writes files."""
    cluster = strategy.cluster_resolver
    if cluster is None:
        return True
    first = "chief" if "chief" in cluster.cluster_spec().jobs else "worker"
    return (cluster.task_type, cluster.task_id) == (first, 0)


@contextmanager
def restarted_when_a_worker_is_lost(strategy: str) -> Iterator[None]:
    """Starts this process anew, with the same command, if another worker is lost while the block runs.

    TensorFlow cannot go on with those that are left. They wait in :func:`create_strategy` until the lost one has been
    started again; then all go on from the newest checkpoint.

    Args:
      strategy: one of :data:`han_tf.training.config.STRATEGIES`; nothing is done for others than ``multi_worker``.
    """
    try:
        yield
    except LOST:
        if strategy != "multi_worker":
            raise
        print("\nanother worker is lost; waiting for it, to go on from the newest checkpoint", flush=True)
        time.sleep(PAUSE)  # its address is free again then, and one that starts at the same time has failed, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def mean_over_workers(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the mean of what the workers give; each waits for all others."""
    if strategy.cluster_resolver is None:
        return value
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(value, tf.float64))
    return float(strategy.reduce("MEAN", values, axis=None))


@contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Lets the other workers wait until the chief has run the block."""
    if not is_chief(strategy):
        mean_over_workers(strategy, 0)
    yield
    if is_chief(strategy):
        mean_over_workers(strategy, 0)


def check_agreement(strategy: tf.distribute.Strategy, state: Any, what: str) -> None:
    """Raises UserError unless all workers have the same ``state``, anything that JSON holds; ``what`` it is."""
    digits = float(crc32(json.dumps(state, sort_keys=True).encode()))
    if mean_over_workers(strategy, digits) != digits:
        raise UserError(f"the workers differ in {what}, expected the same")


def check_precision(precision: str) -> None:
    """Raises UserError for float16 without a GPU: processors are slow in it, and on some TensorFlow crashes."""
    if precision == "mixed_float16" and not tf.config.list_physical_devices("GPU"):
        raise UserError(f"--precision {precision}, but no GPU is here; expected float32 or mixed_bfloat16")


@contextmanager
def computing(precision: str, synchronised: bool) -> Iterator[None]:
    """Makes the networks that are made in the block compute in ``precision``; their weights are float32 all the same.

    Args:
      precision: one of :data:`han_tf.training.config.PRECISIONS`.
      synchronised: whether batch norm takes the statistics of all replicas' images.
    """
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        with synchronised_batch_norm() if synchronised else ExitStack():
            yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def own_part(batch: tf.Tensor) -> tf.Tensor:
    """Returns the part of a batch that this replica takes: equally many images as any other, in their order."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return batch
    size = batch.shape[0] // replica.num_replicas_in_sync
    return batch[replica.replica_id_in_sync_group * size :][:size]


def whole(part: tf.Tensor) -> tf.Tensor:
    """Returns the parts of all replicas as one batch, the reverse of :func:`own_part`; gradients go back to all."""
    replica = tf.distribute.get_replica_context()
    return part if replica.num_replicas_in_sync == 1 else replica.all_gather(part, axis=0)
