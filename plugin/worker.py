"""Calls that may never return, such as into a driver, in threads that keep nothing from ending.

asyncio.to_thread does not do for those: its pool has few threads, and at the end asyncio and the interpreter wait for
all of them without a limit.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

#: A thread that has nothing more to do ends within a fraction of this.
ENDING_SECONDS = 0.1


class Unanswered(Exception):
    """A call did not return in time; its thread is left behind."""


def begin(call: Callable[..., Any], *given: Any, name: str = "worker") -> asyncio.Future:
    """Start the call in a daemon thread of its own. In the event loop, which gets to know what it comes to; if the loop
    has ended by then, nobody does."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody may have given up on it

    def settle(result: Any, error: BaseException | None) -> None:
        thread.join(ENDING_SECONDS)  # it has nothing more to do, and is gone when the result is there
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = _outcome(call, given)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return future


async def within(seconds: float, call: Callable[..., Any], *given: Any, name: str = "worker") -> Any:
    """What the call comes to; seconds: how long it may take. Raises Unanswered."""
    future = begin(call, *given, name=name)
    await asyncio.wait([future], timeout=seconds)
    if not future.done():
        raise Unanswered
    return future.result()


def wait_for(seconds: float, call: Callable[..., Any], *given: Any, name: str = "worker") -> Any:
    """As `within`, without an event loop."""
    outcome: list[tuple[Any, BaseException | None]] = []
    thread = threading.Thread(target=lambda: outcome.append(_outcome(call, given)), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unanswered
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result


def _outcome(call: Callable[..., Any], given: tuple) -> tuple[Any, BaseException | None]:
    try:
        return call(*given), None
    except BaseException as error:  # it is for whoever waits for the result
        return None, error
