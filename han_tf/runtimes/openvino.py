"""Runs an OpenVINO model; needs no TensorFlow."""

import contextlib
import functools
import queue
import threading
from collections import deque
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.processes import usable_cores
from han_tf.runs.card import ModelCard
from han_tf.runtimes import in_batches, model_file
from han_tf.runtimes.quiet_openvino import openvino

BATCHES = (1, 4, 16)
"""Batch sizes that the model is compiled for. 16 is large enough for fast matrix products and small enough for the
maps to stay in the cache; the smaller sizes give a short latency for few images."""

HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""Precision of a model -> OpenVINO's type for what is not quantised. With float16, only the weights are stored so."""


@functools.cache
def core() -> openvino.Core:
    """Returns the process's only OpenVINO core, which is never deleted.

    Each core gives its thread an alternate stack for signals and restores the previous one when it is deleted. If two
    are deleted in the order in which they were made, the restored stack is already freed, and the next signal that
    Python handles, such as Ctrl-C, ends the process with a segmentation fault.
    """
    return openvino.Core()


def has_bfloat16() -> bool:
    """Returns whether OpenVINO can compute in bfloat16 on this processor."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINOModel:
    """An OpenVINO model, compiled for fixed batch sizes, which is faster than for a variable one.

    All threads work on a single image together; of larger batches, each thread runs one of its own. A batch of another
    size is padded. The largest size is compiled at once, the others when they are first needed.

    Args:
      path: of the model's XML file.
      precision: see :data:`HINTS`.
      threads: number of threads that compute.
    """

    def __init__(self, path: str, precision: str, threads: int):
        self._model = core().read_model(path)
        hint = HINTS[precision]
        if hint == "bf16" and not has_bfloat16():
            if precision == "bfloat16":
                raise UserError(f"{path}: this processor has no bfloat16, expected one with AVX-512 BF16 or AMX")
            hint = "f32"
        self._settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        self._threads = threads
        self._requests: dict[int, queue.SimpleQueue] = {}
        self._lock = threading.Lock()
        # Errors of the model show now, not at the first image.
        self._compiled(BATCHES[-1])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images to features, see :data:`han_tf.runtimes.Runtime`."""
        size = next((size for size in BATCHES if len(images) <= 2 * size), BATCHES[-1])
        free = self._compiled(size)
        running: deque[tuple[int, Any, np.ndarray]] = deque()
        parts = []

        def finish() -> None:
            count, request, _ = running.popleft()
            try:
                request.wait()
                parts.append(request.get_output_tensor().data[:count].copy())
            finally:
                free.put(request)

        try:
            for batch in in_batches(images, size):
                count = len(batch)
                if count < size:
                    batch = np.concatenate([batch, np.zeros((size - count, *batch.shape[1:]), np.uint8)])
                # Other callers may wait for requests, so this one gives back its own before it waits.
                while True:
                    try:
                        request = free.get(block=not running)
                        break
                    except queue.Empty:
                        finish()
                try:
                    batch = np.require(batch, requirements=["C", "W"])  # OpenVINO shares no other memory
                    request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
                    request.start_async()
                except BaseException:
                    free.put(request)
                    raise
                running.append((count, request, batch))
            while running:
                finish()
        finally:
            # After a failure the other requests still read their batches.
            while running:
                with contextlib.suppress(Exception):
                    finish()
        return np.concatenate(parts)

    def _compiled(self, size: int) -> queue.SimpleQueue:
        """Returns the free requests of the model for batches of ``size``."""
        with self._lock:
            if size not in self._requests:
                model = self._model.clone()
                model.reshape([size, *model.input(0).get_partial_shape()[1:]])
                streams = 1 if size == 1 else self._threads
                settings = {**self._settings, "NUM_STREAMS": streams}
                compiled = core().compile_model(model, "CPU", settings)
                self._requests[size] = queue.SimpleQueue()
                for _ in range(2 * streams):
                    self._requests[size].put(compiled.create_infer_request())
            return self._requests[size]


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> OpenVINOModel:
    """Opens an OpenVINO model, see :data:`han_tf.runtimes.RUNTIMES`."""
    if card.precision not in HINTS:
        raise UserError(f"{folder}: precision is {card.precision!r}, expected one of {', '.join(HINTS)}")
    return OpenVINOModel(model_file(folder, card, ".xml"), card.precision, threads or usable_cores())
