"""RowsMixin: the parameters ``rows`` and ``defaults`` of an operator, which are masked as soon as they are rendered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.rows import Defaults, check_rows, find_rendered_key, read_defaults
from airflow_provider_runa.utils.arguments import read_json
from airflow_provider_runa.utils.masking import Masked, mask_recipients


class RowsMixin:
    """Reads the rows of a campaign, and keeps recipients out of the fields that Airflow stores."""

    rows: Any
    defaults: Any

    #: Other templated fields that may contain recipients.
    masked_fields: Sequence[str] = ("defaults",)

    _rendered_key: int | None = None

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        # Airflow calls this after rendering, also for mapped tasks.
        template = self.rows
        super()._do_render_template_fields(parent, *args, **kwargs)  # type: ignore[misc] # Airflow's base class has it
        self._rendered_key = find_rendered_key(template, self.rows)
        self._mask_rows()
        fields = {name: getattr(self, name) for name in self.masked_fields}
        mask_recipients(fields.values())
        for name, value in fields.items():
            if _shows_recipient(value):
                setattr(self, name, Masked(value))

    def _mask_rows(self) -> None:
        rows = self.rows
        if rows is not None and not isinstance(rows, Masked):
            counted = hasattr(rows, "__len__") and not isinstance(rows, str)
            self.rows = Masked(rows, f"{len(rows)} rows" if counted else "rows")

    def _read_rows(self) -> Iterator[Any]:
        if self._rendered_key is not None:
            raise InvalidOrderError(
                f"rows[{self._rendered_key}].recipient_key: is text that was rendered to something else, because of "
                "render_template_as_native_obj=True; give it a prefix, as in 'customer-42'"
            )
        rows: Any = ()
        try:
            rows = read_json("rows", self.rows)
            problem = check_rows(rows)
        except InvalidOrderError as error:
            problem = str(error)
        # A function or a subclass may have set them after they were rendered. OpenLineage reports attributes.
        self._mask_rows()
        if problem is not None:
            del rows  # a traceback may show local variables
            raise InvalidOrderError(problem)
        yield from rows

    def _read_defaults(self) -> Defaults:
        try:
            return read_defaults(read_json("defaults", self.defaults))
        except InvalidOrderError as error:
            problem = str(error)
        raise InvalidOrderError(problem)  # from a frame without their values


def _shows_recipient(value: Any) -> bool:
    """Return whether a rendered field shows a recipient. Most do not, and stay as they are for subclasses."""
    plain = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
    return repr(Masked(value)) != plain
