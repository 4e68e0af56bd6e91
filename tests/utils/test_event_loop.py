"""Coroutines of the operators run where no event loop runs, and where one does, as in a notebook."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from typing import Any

import pytest

from airflow_provider_runa.utils.event_loop import run_async

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")


async def answer(error: BaseException | None = None) -> tuple[str, str]:
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return threading.current_thread().name, VARIABLE.get()


def in_a_notebook(call: Any) -> Any:
    """Call a function while an event loop runs in this thread."""

    async def cell() -> Any:
        return call()

    return asyncio.run(cell())


def test_without_a_loop_it_runs_in_the_calling_thread() -> None:
    assert run_async(answer())[0] == threading.main_thread().name


def test_under_a_running_loop_it_runs_in_another_thread_with_the_same_context() -> None:
    VARIABLE.set("set")
    thread, variable = in_a_notebook(lambda: run_async(answer()))
    assert thread != threading.main_thread().name
    assert variable == "set"


def test_the_error_arrives_as_it_is() -> None:
    error = ValueError("planted")
    with pytest.raises(ValueError, match="planted") as caught:
        in_a_notebook(lambda: run_async(answer(error)))
    assert caught.value is error


def test_an_interrupt_cancels_the_coroutine() -> None:
    """Airflow's ``execution_timeout`` is a signal, which arrives in the main thread."""

    class TimedOut(BaseException):
        pass

    def time_out(*_: Any) -> None:
        raise TimedOut

    ends: list[str] = []

    async def pay() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    before = signal.signal(signal.SIGALRM, time_out)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(TimedOut):
            in_a_notebook(lambda: run_async(pay()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ends == ["cancelled"]
