"""The engine in a thread of its own: the same text as the plain engine's, and nobody left waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.errors import UserError
from graftlm.generation import AsyncEngine, Completion, Engine, Request, SamplingSettings, TokenEvent
from tests.families import make_base, randomise
from tests.generation.test_batching import prompt_of, sampled


def requests_of(count: int, **more: Any) -> list[Request]:
    return [
        Request(prompt_of(2 + 5 * n % 23, n), [None, "a", "b", ("a", "b")][n % 4], sampled(3 + n % 9, seed=n, **more))
        for n in range(count)
    ]


def gone(engine: Engine) -> bool:
    """Whether an engine has nothing left of any request."""
    return not engine._all_rows()


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


async def collect(engine: AsyncEngine, request: Request) -> tuple[list[int | None], Completion]:
    events = [event async for event in engine.stream(request)]
    assert events[-1].completion is not None
    return [event.token_id for event in events], events[-1].completion


def test_many_streams_get_what_the_plain_engine_gives(llama: AdaptedModel) -> None:
    requests = requests_of(24)
    expected = Engine(llama).run(requests)

    async def main() -> list[tuple[list[int | None], Completion]]:
        async with AsyncEngine(Engine(llama, max_batch_rows=5, prefill_tokens=8)) as engine:
            return await asyncio.gather(*(collect(engine, request) for request in requests))

    for (ids, completion), plain in zip(asyncio.run(main()), expected, strict=True):
        assert (tuple(ids), completion.token_ids, completion.finish_reason) == (
            plain.token_ids,
            plain.token_ids,
            plain.finish_reason,
        )


def test_samples_come_in_order(llama: AdaptedModel) -> None:
    request = Request(prompt_of(6), "a", sampled(9, n=3, stop_ids=tuple(range(0, 60, 3))))
    expected = Engine(llama).run([request])

    async def main() -> list[Completion]:
        async with AsyncEngine(Engine(llama)) as engine:
            return await engine.complete(request)

    found = asyncio.run(main())
    assert [(c.index, c.token_ids) for c in found] == [(c.index, c.token_ids) for c in expected]


def test_beams_complete(llama: AdaptedModel) -> None:
    request = Request(prompt_of(6), "a", SamplingSettings(max_new_tokens=6, num_beams=3, n=2, stop_ids=()))
    expected = Engine(llama).run([request])

    async def main() -> list[Completion]:
        async with AsyncEngine(Engine(llama)) as engine:
            return await engine.complete(request)

    assert [c.token_ids for c in asyncio.run(main())] == [c.token_ids for c in expected]


def test_from_several_loops_and_threads(llama: AdaptedModel) -> None:
    requests = requests_of(12)
    expected = Engine(llama).run(requests)
    engine = AsyncEngine(Engine(llama, max_batch_rows=4))
    found: dict[int, Completion] = {}

    def one(number: int) -> None:
        found[number] = asyncio.run(engine.complete(requests[number]))[0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(engine.close())
    assert [found[number].token_ids for number in range(12)] == [completion.token_ids for completion in expected]


class TestCancelling:
    def test_by_leaving_the_loop(self, llama: AdaptedModel) -> None:
        other = Request(prompt_of(5), "b", sampled(20))

        async def main() -> Completion:
            async with AsyncEngine(Engine(llama)) as engine:
                waited = asyncio.create_task(engine.complete(other))
                async for event in engine.stream(Request(prompt_of(4), "a", sampled(100), id="left")):
                    assert event.request_id == "left"
                    break
                await until(lambda: "left" not in {row.id for row in engine.engine._all_rows()})
                again = await engine.complete(Request(prompt_of(4), "a", sampled(5), id="left"))
                assert again[0].token_ids == Engine(llama).run([Request(prompt_of(4), "a", sampled(5))])[0].token_ids
                return (await waited)[0]

        assert asyncio.run(main()).token_ids == Engine(llama).run([other])[0].token_ids

    def test_by_cancelling_the_task(self, llama: AdaptedModel) -> None:
        async def main() -> None:
            async with AsyncEngine(Engine(llama, max_batch_rows=2)) as engine:
                tasks = [asyncio.create_task(engine.complete(request)) for request in requests_of(8)]
                long = asyncio.create_task(engine.complete(Request(prompt_of(4), "a", sampled(100))))
                await asyncio.sleep(0.05)
                long.cancel()
                tasks[-1].cancel()
                await asyncio.gather(*tasks[:-1])
                with pytest.raises(asyncio.CancelledError):
                    await long
                await until(lambda: gone(engine.engine))
                assert not engine._open

        asyncio.run(main())

    def test_by_id(self, llama: AdaptedModel) -> None:
        async def main() -> tuple[list[int | None], Completion]:
            async with AsyncEngine(Engine(llama)) as engine:
                task = asyncio.create_task(collect(engine, Request(prompt_of(4), "a", sampled(100), id=7)))
                await until(lambda: bool(engine.engine.statistics.steps))
                await engine.cancel(7)
                return await task

        ids, completion = asyncio.run(main())
        assert completion.finish_reason == "cancelled"
        whole = Engine(llama).run([Request(prompt_of(4), "a", sampled(100))])[0].token_ids
        assert completion.token_ids == whole[: len(completion.token_ids)] == tuple(ids[:-1])

    def test_a_task_that_never_got_to_submit(self, llama: AdaptedModel) -> None:
        async def main() -> None:
            async with AsyncEngine(Engine(llama)) as engine:
                tasks = [asyncio.create_task(engine.complete(request)) for request in requests_of(10)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await engine.call(lambda: None)
                await until(lambda: gone(engine.engine) and not engine._open)

        asyncio.run(main())


def test_the_worker_takes_as_many_threads_as_there_are(llama: AdaptedModel) -> None:
    """Also where it begins in a moment in which another engine's step holds them back."""
    before = torch.get_num_threads()

    async def main() -> int:
        async with AsyncEngine(Engine(llama)) as engine:
            torch.set_num_threads(1)
            return await engine.call(torch.get_num_threads)

    torch.set_num_threads(2)
    try:
        assert asyncio.run(main()) == 2
    finally:
        torch.set_num_threads(before)


class TestErrors:
    def test_of_submitting(self, llama: AdaptedModel) -> None:
        async def main() -> None:
            async with AsyncEngine(Engine(llama)) as engine:
                with pytest.raises(UserError, match="unknown adapter 'c'"):
                    await engine.complete(Request((3,), "c"))
                with pytest.raises(UserError, match="the prompt is empty"):
                    async for _ in engine.stream(Request(())):
                        pass
                assert (await engine.complete(requests_of(1)[0]))[0].error is None

        asyncio.run(main())

    @pytest.mark.parametrize("times", [1, 2])
    def test_of_a_step(self, llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        engine = Engine(llama, max_batch_rows=2)
        real, calls = engine._decode, [0]

        def decode() -> list[TokenEvent]:
            calls[0] += 1
            if 3 <= calls[0] < 3 + times:
                raise RuntimeError("a fault of the machine")
            return real()

        monkeypatch.setattr(engine, "_decode", decode)
        if times == 2:  # the second one comes before any other row could begin
            monkeypatch.setattr(engine, "_end_orphans", lambda: decode() if calls[0] == 3 else [])
        requests = [replace(request, sampling=sampled(12, seed=n)) for n, request in enumerate(requests_of(5))]

        async def main() -> list[Completion]:
            async with AsyncEngine(engine) as running:
                all_in = threading.Event()
                held = asyncio.create_task(running.call(all_in.wait))
                answers = [asyncio.create_task(running.complete(request)) for request in requests]
                await asyncio.sleep(0)  # each task runs up to its submission
                all_in.set()
                await held
                found = [done[0] for done in await asyncio.gather(*answers)]
                assert (await running.complete(requests[0]))[0].error is None
                return found

        found = asyncio.run(main())
        failed = [completion for completion in found if completion.finish_reason == "error"]
        assert len(failed) == (2 if times == 1 else 5)
        assert all("a fault of the machine" in (completion.error or "") for completion in failed)
        whole = Engine(llama).run(requests)
        for completion, plain in zip(found, whole, strict=True):
            if completion.error is None:
                assert completion.token_ids == plain.token_ids

    def test_of_a_listener(self, llama: AdaptedModel) -> None:
        def broken(_: TokenEvent) -> None:
            raise ValueError

        async def main() -> None:
            async with AsyncEngine(Engine(llama)) as engine:
                engine.submit(Request(prompt_of(4), "a", sampled(100)), broken).result()
                assert (await engine.complete(requests_of(2)[1]))[0].error is None
                assert gone(engine.engine)

        asyncio.run(main())


def test_adapters_between_steps() -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    randomise(model.add("a", LoRA(rank=2)), seed=1)
    randomise(model.add("b", LoRA(rank=2)), seed=2)
    newer = model.remove("b")
    request = Request(prompt_of(20), "a", sampled(30))
    old = Engine(model).run([request])[0].token_ids

    async def main() -> list[Completion]:
        async with AsyncEngine(Engine(model)) as engine:
            first = asyncio.create_task(engine.complete(request))
            await until(lambda: engine.engine.statistics.steps > 1)
            await engine.replace_adapter("a", newer)
            second = asyncio.create_task(engine.complete(request))
            found = [*await first, *await second]
            await engine.remove_adapter("a")
            with pytest.raises(UserError, match="unknown adapter 'a'"):
                await engine.complete(request)
            with pytest.raises(UserError, match="unknown adapter 'a'"):
                await engine.replace_adapter("a", newer)
            await engine.add_adapter("a", newer)
            return [*found, *await engine.complete(request)]

    found = asyncio.run(main())
    new = Engine(model).run([request])[0].token_ids
    assert [completion.token_ids for completion in found] == [old, new, new]
    assert old != new


class TestClosing:
    def test_while_it_runs(self, llama: AdaptedModel) -> None:
        requests = [Request(prompt_of(5, n), "a", sampled(100, seed=n)) for n in range(6)]

        async def main() -> list[Completion]:
            engine = AsyncEngine(Engine(llama, max_batch_rows=3))
            tasks = [asyncio.create_task(engine.complete(request)) for request in requests]
            await until(lambda: engine.engine.statistics.steps > 3)
            await engine.close()
            await engine.close()
            assert gone(engine.engine)
            with pytest.raises(UserError, match="the engine is closed"):
                await engine.complete(requests[0])
            with pytest.raises(UserError, match="the engine is closed"):
                await engine.remove_adapter("a")
            return [done[0] for done in await asyncio.gather(*tasks)]

        found = asyncio.run(main())
        assert {completion.finish_reason for completion in found} == {"cancelled"}
        whole = Engine(llama).run(requests)
        for completion, plain in zip(found, whole, strict=True):
            assert completion.token_ids == plain.token_ids[: len(completion.token_ids)]
        assert any(completion.token_ids for completion in found)

    def test_before_it_began(self, llama: AdaptedModel) -> None:
        async def main() -> None:
            async with AsyncEngine(Engine(llama)):
                pass

        before = threading.active_count()
        asyncio.run(main())
        assert threading.active_count() == before


def test_an_idle_worker_sleeps(llama: AdaptedModel) -> None:
    async def main() -> float:
        async with AsyncEngine(Engine(llama)) as engine:
            await engine.complete(requests_of(1)[0])
            before = time.process_time()
            await asyncio.sleep(0.3)
            return time.process_time() - before

    assert asyncio.run(main()) < 0.15
