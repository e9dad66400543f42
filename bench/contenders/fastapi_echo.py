"""Contender 2: an empty FastAPI endpoint. The body goes through pydantic; a constant comes out.

Nothing is decided or stored: a yardstick for what the framework costs by itself.

Tuned: uvloop, httptools, no access log; the answer is ready-made bytes (a response model was slower).
"""

from fastapi import FastAPI
from fastapi.responses import Response

from bench.contenders.contract import EXAMPLE, Grab

app = FastAPI()


@app.post("/v1/drops/{drop_id}/grabs")
async def grab(drop_id: str, body: Grab) -> Response:  # noqa: ARG001 - validated is all it is
    """Answer 200 once the body is valid."""
    return Response(EXAMPLE, media_type="application/json")
