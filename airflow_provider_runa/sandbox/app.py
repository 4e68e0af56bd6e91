"""The sandbox over HTTP: Runa's API below ``/v2``, and its own controls below ``/_sandbox``."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from http.client import responses
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from airflow_provider_runa.sandbox.engine import Answer, Engine, Fault

PREFIX = "/v2"

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(config=ConfigDict(extra="forbid"))
class CheckedFault(Fault):
    """A fault whose fields are checked."""


class BalanceSetting(BaseModel):
    """A balance to set."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    balance: Annotated[Decimal, Field(ge=0)]


class Advance(BaseModel):
    """How far the sandbox's clock moves, in seconds: up to ten years."""

    seconds: Annotated[float, Field(ge=0, le=10 * 365 * 86400)]


def create_app(engine: Engine) -> FastAPI:
    """Return the application that serves an engine.

    :param engine: what answers.
    """
    app = FastAPI(title="Runa sandbox", openapi_url=None, docs_url=None, redoc_url=None)

    async def serve(request: Request) -> Response:
        path = request.scope["raw_path"].decode().removeprefix(PREFIX)
        answer = engine.handle(
            request.method, path, request.query_params.multi_items(), request.headers, await request.body()
        )
        if answer.delay > 0:
            try:
                await asyncio.sleep(answer.delay)
            except asyncio.CancelledError:  # the sandbox is stopped meanwhile
                answer.drop = "all"
        # HTTP 1xx is no final answer, so that no framework sends it with a body; the real API is said to.
        if answer.drop or 100 <= answer.status < 200:
            return _misbehave(request, answer)
        headers = {"Content-Type": "application/json"} | answer.headers
        return Response(answer.body, answer.status, headers)

    # Which paths there are is the engine's to say: whatever is not there has an answer of Runa's form, too.
    app.add_api_route(PREFIX + "{path:path}", serve, methods=METHODS)

    @app.post("/_sandbox/faults")
    def add_faults(faults: list[CheckedFault]) -> dict[str, int]:
        engine.faults.extend(faults)
        return {"faults": len(engine.faults)}

    @app.delete("/_sandbox/faults")
    def clear_faults() -> dict[str, int]:
        engine.faults.clear()
        return {"faults": 0}

    @app.get("/_sandbox/stats")
    def stats() -> dict[str, Any]:
        return engine.stats()

    @app.get("/_sandbox/orders")
    def orders() -> list[dict[str, Any]]:
        return [
            {
                "id": order.id,
                "status": order.status,
                "created_at": order.created,
                "description": order.body.get("description"),
                "metadata": order.body.get("metadata"),
                "currency": order.body["payment_method"]["currency"],
                "face_value": f"{sum(Decimal(str(item['face_value'])) for item in order.body['items']):.2f}",
                "items": len(order.body["items"]),
                "idempotency_key": order.idempotency_key,
            }
            for order in engine.orders()
        ]

    @app.post("/_sandbox/reset")
    def reset() -> dict[str, str]:
        engine.reset()
        return {"reset": "done"}

    @app.post("/_sandbox/balance")
    def set_balance(setting: BalanceSetting) -> BalanceSetting:
        engine.set_balance(setting.currency, setting.balance)
        return setting

    @app.post("/_sandbox/advance")
    def advance(by: Advance) -> dict[str, float]:
        engine.advance(by.seconds)
        return {"now": engine.now()}

    return app


def _misbehave(request: Request, answer: Answer) -> Response:
    """Write to the connection what no framework would write, or nothing, and close it."""
    transport = request.receive.__self__.transport  # type: ignore[attr-defined] # uvicorn's request cycle
    if answer.drop == "all":
        transport.abort()
    else:
        head = f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Odd')}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n\r\n"
        raw = head.encode() + answer.body
        transport.write(raw if answer.drop == "" else raw[: -max(1, len(answer.body) // 2)])
        transport.close()
    return Response(status_code=500)  # goes nowhere
