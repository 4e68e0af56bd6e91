"""The sandbox over HTTP: Runa's ten endpoints below ``/v2``, and its own controls below ``/_sandbox``."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

from airflow_provider_runa.sandbox.engine import Answer, Engine, Fault

PREFIX = "/v2"

ENDPOINTS = (
    ("GET", "/ping"),
    ("GET", "/balance"),
    ("POST", "/order"),
    ("GET", "/order"),
    ("GET", "/order/{order_id}"),
    ("POST", "/order/estimate"),
    ("GET", "/product"),
    ("GET", "/product/countries"),
    ("GET", "/product/categories"),
    ("GET", "/product/{product_code}"),
)


class BalanceSetting(BaseModel):
    """A balance to set."""

    currency: str
    balance: Decimal


class Advance(BaseModel):
    """How far the sandbox's clock moves, in seconds."""

    seconds: float


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
            await asyncio.sleep(answer.delay)
        # HTTP 1xx is no final answer, so that no framework sends it with a body; the real API is said to.
        if answer.drop or 100 <= answer.status < 200:
            return _misbehave(request, answer)
        headers = {"Content-Type": "application/json"} | answer.headers
        return Response(answer.body, answer.status, headers)

    for method, path in ENDPOINTS:
        app.add_api_route(PREFIX + path, serve, methods=[method])

    @app.post("/_sandbox/faults")
    def add_faults(faults: list[dict[str, Any]]) -> dict[str, int]:
        try:
            engine.faults.extend([Fault.from_json(fault) for fault in faults])
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from None
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
        head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n\r\n"
        raw = head.encode() + answer.body
        transport.write(raw if answer.drop == "" else raw[: -max(1, len(answer.body) // 2)])
        transport.close()
    return Response(status_code=500)  # goes nowhere
