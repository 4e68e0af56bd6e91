"""What an error tracker would send of an exception: the local variables of every frame in its traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_TESTS = str(Path(__file__).parent.parent)

#: Modules whose frames are not ours to keep clean.
_FOREIGN = ("_pytest", "pluggy", "pytest", "airflow.")


def assert_no_secrets(
    error: BaseException,
    secrets: Iterable[str],
    *,
    ignored: Iterable[str] = (),
    attributes: bool = True,
    only_own: bool = False,
) -> None:
    """Check that no local variable of a frame in an exception's traceback shows a secret.

    The exceptions that it is chained to are checked, too, unless the chain is suppressed. Of each variable the ``repr``
    counts, and the ``repr`` of each of its attributes. Frames of the tests, of pytest and of Airflow do not count.

    :param error: the exception.
    :param secrets: texts that must not appear, such as parts of an API key, a link or a recipient.
    :param ignored: names of variables that do not count, as ``function.variable``.
    :param attributes: whether the attributes count. Those of an operator, which holds its parameters, cannot.
    :param only_own: whether only the frames of ``airflow_provider_runa`` count.
    """
    secrets, ignored = tuple(secrets), frozenset(ignored)
    found = [
        f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}: {name} shows {secret!r}"
        for frame in frames(error)
        if not only_own or str(frame.f_globals.get("__name__")).startswith("airflow_provider_runa")
        for variable, value in list(frame.f_locals.items())
        if f"{frame.f_code.co_name}.{variable}" not in ignored
        for name, text in shown(variable, value, attributes)
        for secret in secrets
        if secret in text
    ]
    found += [f"{type(one).__name__}: {one}" for one in chain(error) for secret in secrets if secret in str(one)]
    assert not found, "\n".join(found)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an exception and those that a traceback shows with it."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        left += getattr(one, "exceptions", ())  # of a group


def frames(error: BaseException) -> Iterator[FrameType]:
    """Iterate over the frames in the traceback of an exception and its chain, except those that are not ours."""
    for one in chain(error):
        trace: TracebackType | None = one.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            module = str(frame.f_globals.get("__name__"))
            if not frame.f_code.co_filename.startswith(_TESTS) and not module.startswith(_FOREIGN):
                yield frame
            trace = trace.tb_next


def shown(name: str, value: Any, with_attributes: bool) -> Iterator[tuple[str, str]]:
    """Iterate over what an error tracker may show of a variable: its ``repr``, and those of its attributes."""
    yield name, _repr(value)
    if not with_attributes:
        return
    attributes = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):
                attributes.setdefault(slot, getattr(value, slot))
    for attribute, inner in attributes.items():
        yield f"{name}.{attribute}", _repr(inner)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(error).__name__}>"
