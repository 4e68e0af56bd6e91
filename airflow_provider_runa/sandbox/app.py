"""The sandbox over HTTP: Runa's API below ``/v2``, and the controls below ``/_sandbox``."""

from __future__ import annotations

import asyncio
import socket
import struct
from http.client import responses

from fastapi import FastAPI, Request, Response

from airflow_provider_runa.sandbox.answers import Answer
from airflow_provider_runa.sandbox.controls import router
from airflow_provider_runa.sandbox.engine import Engine

PREFIX = "/v2"

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(engine: Engine, *, log_requests: bool = False) -> FastAPI:
    """Return the application that serves an engine.

    :param engine: what answers.
    :param log_requests: print a line per request to the API: method, path without the query, and status.
    """
    app = FastAPI(title="Runa sandbox", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.engine = engine

    async def serve(request: Request) -> Response:
        path = request.scope["raw_path"].decode().removeprefix(PREFIX)
        answer = engine.handle(
            request.method, path, request.query_params.multi_items(), request.headers, await request.body()
        )
        if log_requests:  # no headers, query and bodies: they have keys and recipients
            dropped = f" ({answer.drop} dropped)" if answer.drop else ""
            print(f"{request.method} {request.url.path} {answer.status}{dropped}", flush=True)
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

    app.include_router(router)
    return app


def _misbehave(request: Request, answer: Answer) -> Response:
    """Write to the connection what no framework would write, or nothing, and close it."""
    transport = request.receive.__self__.transport  # type: ignore[attr-defined] # uvicorn's request cycle
    if answer.drop in ("all", "reset"):
        if answer.drop == "reset":
            at_once = struct.pack("ii", 1, 0)  # closed without a word for what was not read yet
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        transport.abort()
    else:
        head = f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Odd')}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n\r\n"
        raw = head.encode() + answer.body
        transport.write(raw if answer.drop == "" else raw[: -max(1, len(answer.body) // 2)])
        transport.close()
    return Response(status_code=500)  # goes nowhere
