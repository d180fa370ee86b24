"""Bounded queues: batches for the network, and pools of threads for other slow work."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Optional

from han_tf.serve.limits import Refusal, overloaded


class _Waiting(NamedTuple):
    item: Any
    future: asyncio.Future
    since: float


def _power_of_two(number: int) -> int:
    """Returns the greatest power of two that is not above ``number``; 0 for 0."""
    return 1 << number.bit_length() - 1 if number else 0


class Batcher:
    """Collects single items into batches for a function that is faster with several at once.

    The first item of a batch waits ``wait_ms`` for others, unless ``max_batch`` are there already. Batches are computed
    one after the other, in one thread; the next one is collected meanwhile. Items whose caller was cancelled (the
    client disconnected or timed out) are not computed.

    The sizes of batches are powers of two, because runtimes keep buffers and compiled kernels for every size: with all
    sizes up to 32, HAN Small in TensorFlow takes 130 MiB more. The remaining items go into the next batch.

    Args:
      compute: takes a list of items and returns as many results, in their order.
      name: of the items, in the plural, for the message when the queue is full.
      max_batch: most items of a batch; rounded down to a power of two.
      wait_ms: how long the first item waits for others, in ms.
      max_queue: most items waiting.
      observe: called with the size of every batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        name: str,
        max_batch: int,
        wait_ms: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda size: None,
    ):
        self._compute = compute
        self._name = name
        self._max_batch = max_batch
        self._wait = wait_ms / 1000
        self._max_queue = max_queue
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._arrived: Optional[asyncio.Event] = None
        self._worker: Optional[asyncio.Task] = None
        self._closing = False

    def __len__(self) -> int:
        """Returns how many items wait."""
        return len(self._waiting)

    async def warm_up(self, item: Any) -> None:
        """Computes a batch of ``item`` of every size, so that the first requests are as fast as later ones."""
        for power in range(_power_of_two(self._max_batch).bit_length()):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, [item] * 2**power)

    def start(self) -> None:
        """Starts the thread; to be called in the event loop that adds the items."""
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"batch-{self._name}")
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def __call__(self, item: Any) -> Any:
        """Returns the result of ``item``.

        Raises:
          Refusal: 503, the queue is full or being closed.
          Exception: what ``compute`` raised for the batch.
        """
        if self._closing:
            raise Refusal(503, "the service is stopping")
        if len(self._waiting) >= self._max_queue:
            raise overloaded(f"{self._max_queue} {self._name} are waiting")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, future, time.monotonic()))
        self._arrived.set()
        return await future

    async def close(self) -> None:
        """Computes the waiting items and ends the thread."""
        self._closing = True
        if self._worker is not None:
            self._arrived.set()
            await self._worker
            self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if 0 < len(self._waiting) < self._max_batch and not self._closing:
                await asyncio.sleep(self._waiting[0].since + self._wait - time.monotonic())
            self._waiting = deque(one for one in self._waiting if not one.future.done())
            size = _power_of_two(min(len(self._waiting), self._max_batch))
            batch = [self._waiting.popleft() for _ in range(size)]
            if not self._waiting and not self._closing:
                self._arrived.clear()
            if batch:
                self._observe(len(batch))
                try:
                    results = await loop.run_in_executor(self._thread, self._compute, [one.item for one in batch])
                except Exception as error:
                    results = [error] * len(batch)
                for (_, future, _), result in zip(batch, results):
                    if not future.done():
                        settle = future.set_exception if isinstance(result, Exception) else future.set_result
                        settle(result)
            elif self._closing and not self._waiting:
                return


class Pool:
    """A pool of threads with a bounded queue.

    Args:
      threads: number of threads.
      name: of the calls, in the plural, for the message when the queue is full.
      max_queue: largest sum of the weights of the calls that wait or run.
    """

    def __init__(self, threads: int, name: str, max_queue: int):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"pool-{name}")
        self._name = name
        self._max_queue = max_queue
        self._pending = 0

    def __len__(self) -> int:
        """Returns the sum of the weights of the calls that wait or run."""
        return self._pending

    async def __call__(self, function: Callable[..., Any], *arguments: Any, weight: int = 1) -> Any:
        """Returns the result of ``function``, called in one of the threads.

        A call that has begun is finished even if its caller is cancelled.

        Args:
          function: what to call.
          *arguments: of the function.
          weight: share of the queue that the call takes; a call with more than the whole queue is accepted if no other
            waits or runs.

        Raises:
          Refusal: 503, the queue is full.
        """
        if self._pending and self._pending + weight > self._max_queue:
            raise overloaded(f"{self._pending} {self._name} are waiting")
        self._pending += weight
        try:
            future = self._threads.submit(function, *arguments)
        except RuntimeError as error:
            self._pending -= weight
            raise Refusal(503, "the service is stopping") from error
        loop = asyncio.get_running_loop()
        # Counted until the call has ended, because it still takes its thread if the client has disconnected.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished, weight))
        return await asyncio.wrap_future(future)

    def _finished(self, weight: int) -> None:
        self._pending -= weight

    async def close(self) -> None:
        """Waits for the accepted calls, and ends the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
