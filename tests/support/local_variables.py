"""What an error tracker may send of an exception: the local variables of its frames."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import FrameType

#: Modules whose frames are not ours to keep clean.
_FOREIGN = ("_pytest", "pluggy", "tests", "airflow.", "pytest")


def assert_no_secrets(error: BaseException, secrets: Collection[str], *, foreign: bool = False) -> None:
    """Check that no local variable in the frames of an exception, nor its text, shows a secret.

    The exceptions that it was raised from, and while, are checked too, unless they are suppressed.

    :param error: the exception.
    :param secrets: texts that must not appear in the ``repr`` of a local variable.
    :param foreign: whether to check the frames of other packages, too, except Airflow's and pytest's.
    """
    leaks = [
        f"{type(one).__name__}: {where} shows {secret}"
        for one in _chain(error)
        for where, text in _shown(one, foreign)
        for secret in secrets
        if secret in text
    ]
    assert not leaks, "\n".join(leaks)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _shown(error: BaseException, foreign: bool) -> Iterator[tuple[str, str]]:
    yield "its text", f"{error!r} {error}"
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if _is_checked(frame, foreign):
            for name, value in list(frame.f_locals.items()):
                yield f"{name} of {frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}", repr(value)
        trace = trace.tb_next


def _is_checked(frame: FrameType, foreign: bool) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module.startswith("airflow_provider_runa") or (foreign and not module.startswith(_FOREIGN))
