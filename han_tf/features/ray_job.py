"""Extraction on the machines of a Ray cluster: actors load the model and make shards, one at a time.

All machines must see the folder, the images and the model under the same paths. If a machine or a process dies, Ray
starts its actor again, on another machine if necessary, and repeats the unfinished shard. Shards are written
atomically; a shard that is made twice is replaced by an equal one.
"""

import contextlib
import io
import os
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Any, Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import exists
from han_tf.data.depth import Depth
from han_tf.data.image_lists import ImageList
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.job import EarlierShards, Plan, extract_shards
from han_tf.features.ray_cluster import WATCH_SECONDS, actor_needs, connected, machines, rooms
from han_tf.features.shards import Manifest, UnreadableFile, read_shard
from han_tf.runs.card import CARD, ModelCard, read_card, verify_files
from han_tf.weights import resolve


def extract_with_ray(
    address: str,
    model: Union[str, os.PathLike],
    images: ImageList,
    folder: Union[str, os.PathLike],
    work: Plan,
    *,
    batch_size: int = 64,
    actors: int = 0,
    actor_cpus: int = 1,
    gpu: bool = True,
) -> list[str]:
    """Makes the pending shards on a Ray cluster, with a progress bar over all images.

    Args:
      address: of the cluster, as of :func:`han_tf.features.ray_cluster.connected`.
      model: folder of a run or an exported model, or the name of a network that comes with the package.
      images: all images of the plan.
      folder: where the shards go.
      work: the plan.
      batch_size: images per call of the network.
      actors: largest number of processes that load the model; as many as the cluster has room for if 0.
      actor_cpus: cores of each actor.
      gpu: whether each actor also gets a GPU, if the cluster has any.

    Returns:
      Sentences on how grey images were scaled, see :attr:`han_tf.data.depth.Depth.notes`, and on the machines that were
      lost meanwhile.

    Raises:
      UserError: Ray is not installed; the cluster cannot be reached or is too small, or its head is lost; an actor
        cannot use the model or cannot write.
    """
    if not work.pending:
        return []
    stdout = sys.stdout
    # Until it is disconnected, Ray prints messages about lost machines to standard output.
    with contextlib.redirect_stdout(io.StringIO()), connected(address) as ray:
        needs = actor_needs(ray, address, actor_cpus, gpu)
        free = ray.available_resources()
        if any(free.get(name, 0) < number for name, number in needs.items()):
            print(
                f"note: Ray at {address} is busy with other work; waiting until there is room for an actor", file=stdout
            )
        before = machines(ray)
        actor = ray.remote(num_cpus=actor_cpus, num_gpus=needs.get("GPU", 0), max_restarts=-1, max_task_retries=-1)(
            ShardMaker
        )
        arguments = _everywhere(model), os.path.abspath(folder), work.manifest, actor_cpus, batch_size
        depth = Depth()
        pending = deque(work.pending)
        idle: list[Any] = []
        running: dict[Any, tuple[Any, int]] = {}  # task -> its actor and its number of images
        with work.progress() as bar:
            for room in rooms(ray, address, needs):
                while pending and (idle or len(running) < max(1, min(room, actors or room))):
                    maker = idle.pop() if idle else actor.remote(*arguments)
                    number = pending.popleft()
                    start, end = work.manifest.bounds(number)
                    running[maker.make.remote(number, images.part(start, end))] = maker, end - start
                for maker in idle:  # so that actors that restart have room
                    ray.kill(maker)
                if not running:
                    break
                finished, _ = ray.wait([*running], timeout=WATCH_SECONDS)
                idle = []
                for task in finished:
                    depth.add(ray.get(task))
                    maker, count = running.pop(task)
                    idle.append(maker)
                    bar.update(count)
        lost = len(before.keys() - machines(ray).keys())
        notes = depth.notes
        if lost:
            notes.append(f"machines of the cluster that were lost: {lost}; others have done their part")
        return notes


def _everywhere(model: Union[str, os.PathLike]) -> str:
    """Returns a name that is valid on all machines: an absolute path, or the name of a network of the package."""
    return os.path.abspath(model) if resolve(model) == Path(model) else str(model)


def check_cluster(address: str, actor_cpus: int = 1, gpu: bool = True) -> None:
    """Connects to a Ray cluster and disconnects; the arguments are those of :func:`extract_with_ray`.

    Raises:
      UserError: Ray is not installed; the cluster cannot be reached or is too small.
    """
    with connected(address) as ray:
        actor_needs(ray, address, actor_cpus, gpu)


def model_card(model: Union[str, os.PathLike]) -> ModelCard:
    """Returns the card of a run or an exported model, without using a GPU, which the actors need.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    if exists(Path(model) / CARD):
        card = read_card(model)
        verify_files(model, card)
        return card
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return FeatureExtractor(model).card


class ShardMaker:
    """Makes shards; an actor of Ray, which loads the model with its first shard.

    Args:
      model, folder, batch_size: as of :func:`extract_with_ray`.
      manifest: the folder's manifest.
      threads: number of threads of the network, and of those that decode.
    """

    def __init__(self, model: str, folder: str, manifest: Manifest, threads: int, batch_size: int):
        self._model, self._folder, self._manifest = model, folder, manifest
        self._threads, self._batch_size = threads, batch_size
        self._extractor: Optional[FeatureExtractor] = None
        self._earlier: Optional[EarlierShards] = None

    def make(self, number: int, images: ImageList) -> dict[float, tuple[int, float]]:
        """Makes a shard of ``images``, unless it exists already, made by an actor that died later.

        Returns:
          How grey images were scaled, see :attr:`han_tf.data.depth.Depth.scaled`.

        Raises:
          UserError: the model cannot be used, or is another one than the manifest's; an image cannot be read, or the
            shard cannot be written. The message begins with the machine's name.
        """
        try:
            if self._extractor is None:
                self._extractor = FeatureExtractor(self._model, threads=self._threads, batch_size=self._batch_size)
            found, expected = self._extractor.checksum, self._manifest.model
            if found != expected:
                raise UserError(f"{self._model}: checksum {found}, expected {expected} as where the command was given")
            try:
                read_shard(self._folder, self._manifest, number)
            except UnreadableFile:
                raise
            except UserError:
                if self._earlier is None:
                    self._earlier = EarlierShards(self._folder, self._manifest)
                return extract_shards(
                    self._extractor, images, self._folder, self._manifest, [number], earlier=self._earlier
                ).scaled
            return {}
        except UserError as error:
            raise UserError(f"{socket.gethostname()}: {error}") from error
