"""Bounded queues and batches."""

import asyncio
import threading

import pytest

from han_tf.serve.batching import Batcher, Pool
from han_tf.serve.limits import Refusal


class Doubler:
    """Doubles numbers; records the batches; waits for ``gate`` before it answers."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.batches.append(list(items))
        assert self.gate.wait(20)
        if -1 in items:
            raise ZeroDivisionError("bad item")
        return [2 * item for item in items]


def run(test, **options):
    doubler = Doubler()
    sizes = []
    settings = {"max_batch": 4, "wait_ms": 20, "max_queue": 10, **options}

    async def main():
        batcher = Batcher(doubler, "numbers", observe=sizes.append, **settings)
        batcher.start()
        try:
            await test(batcher, doubler)
        finally:
            doubler.gate.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert sizes == [len(batch) for batch in doubler.batches]
    return doubler.batches


def test_each_gets_its_own_result_and_batches_are_as_large_as_allowed():
    async def test(batcher, _):
        assert await asyncio.gather(*(batcher(n) for n in range(10))) == [2 * n for n in range(10)]

    batches = run(test)
    assert [n for batch in batches for n in batch] == list(range(10))
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_sizes_are_powers_of_two():
    async def test(batcher, doubler):
        doubler.gate.clear()
        first = asyncio.ensure_future(batcher(0))
        while not doubler.batches:
            await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(batcher(n)) for n in range(1, 24)]
        await asyncio.sleep(0)
        doubler.gate.set()
        assert await asyncio.gather(first, *others) == [2 * n for n in range(24)]

    assert [len(batch) for batch in run(test, max_batch=20, max_queue=30)] == [1, 16, 4, 2, 1]


def test_warming_up_computes_a_batch_of_every_size():
    async def main():
        doubler = Doubler()
        batcher = Batcher(doubler, "numbers", 9, 1, 10)
        batcher.start()
        await batcher.warm_up(5)
        await batcher.close()
        assert doubler.batches == [[5] * n for n in (1, 2, 4, 8)]

    asyncio.run(main())


def test_a_single_item_is_computed():
    async def test(batcher, _):
        assert await batcher(7) == 14

    assert run(test) == [[7]]


def test_a_full_queue_refuses_with_retry_after():
    async def test(batcher, doubler):
        doubler.gate.clear()
        waiting = [asyncio.ensure_future(batcher(0))]
        while not doubler.batches:
            await asyncio.sleep(0.01)
        waiting += [asyncio.ensure_future(batcher(n)) for n in (1, 2)]
        await asyncio.sleep(0)
        assert len(batcher) == 2
        with pytest.raises(Refusal, match="2 numbers are waiting") as refusal:
            await batcher(99)
        assert refusal.value.status == 503
        assert int(refusal.value.headers["Retry-After"]) >= 1
        doubler.gate.set()
        assert await asyncio.gather(*waiting) == [0, 2, 4]

    run(test, max_queue=2, max_batch=3, wait_ms=0)


def test_cancelled_items_are_not_computed():
    async def test(batcher, doubler):
        doubler.gate.clear()
        first = asyncio.ensure_future(batcher(0))
        while not doubler.batches:
            await asyncio.sleep(0.01)
        gone = asyncio.ensure_future(batcher(1))
        kept = asyncio.ensure_future(batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        doubler.gate.set()
        assert [await first, await kept] == [0, 4]

    assert run(test, wait_ms=0) == [[0], [2]]


def test_an_error_reaches_its_batch_and_no_other():
    async def test(batcher, _):
        results = await asyncio.gather(batcher(1), batcher(-1), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 2
        assert await batcher(3) == 6

    run(test)


def test_closing_finishes_what_was_accepted():
    async def main():
        doubler = Doubler()
        batcher = Batcher(doubler, "numbers", 2, 1000, 100)
        batcher.start()
        waiting = [asyncio.ensure_future(batcher(n)) for n in range(7)]
        await asyncio.sleep(0)
        await batcher.close()
        assert [await result for result in waiting] == [2 * n for n in range(7)]
        with pytest.raises(Refusal, match="stopping"):
            await batcher(1)

    asyncio.run(main())


def test_a_pool_is_bounded_and_finishes_what_it_began():
    async def main():
        gate, done = threading.Event(), []

        def work(n):
            assert gate.wait(20)
            done.append(n)
            return n

        pool = Pool(1, "searches", 2)
        first, second = (asyncio.ensure_future(pool(work, n)) for n in range(2))
        await asyncio.sleep(0.05)
        assert len(pool) == 2
        with pytest.raises(Refusal, match="2 searches are waiting"):
            await pool(work, 9)
        first.cancel()  # the client disconnected; its call still takes the thread and counts
        await asyncio.sleep(0.05)
        assert len(pool) == 2
        gate.set()
        assert await second == 1
        await pool.close()
        await asyncio.sleep(0)
        assert done == [0, 1]
        with pytest.raises(Refusal, match="stopping"):
            await pool(work, 9)

    asyncio.run(main())
