"""Looking up what stands: a grab by its number, vouchers, the ledger of a drop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from couponsvc import limits
from couponsvc.api import answer_models, models
from couponsvc.api.access import AuditorKey, Reader, ServicesOf, visible_drop
from couponsvc.api.answers import json_answer, receipt_of, voucher_bytes
from couponsvc.api.auth import Principal
from couponsvc.api.openapi import problems
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.routes_drops import DropId
from couponsvc.api.services import Services
from couponsvc.ledger import reading
from couponsvc.programs.definitions import SQL, StandingDrop, standing_drop
from couponsvc.values.drop import Drop
from couponsvc.values.voucher import MAX_NUMBER, StandingVoucher, parse_voucher_id

router = APIRouter(prefix="/v1", tags=["vouchers"])

LEDGER_CHUNK_COUNT = 1_000
"""Vouchers read at a time while a page of the ledger is sent: about 400 kB in memory."""
NDJSON = "application/x-ndjson"
NUMBER_PATTERN = rf"^[A-Za-z0-9_\-|*@.:]{{1,{limits.OUT_REQUEST_NO_MAX_CHARS}}}$"
TOKEN_PATTERN = rf"^[\x21-\x7e]{{1,{limits.PERSON_TOKEN_MAX_CHARS}}}$"

OutRequestNo = Annotated[str, Path(pattern=NUMBER_PATTERN, examples=["20261001-000017"])]


@router.get(
    "/drops/{drop_id}/grabs/{out_request_no}",
    operation_id="get_grab",
    summary="Learn the outcome of a grab",
    responses={
        200: {
            "model": answer_models.VoucherAnswer,
            "description": "Confirmed: the voucher, byte-identical for ever",
        },
        202: {"model": answer_models.PendingAnswer, "description": "Decided; the commit was not seen yet"},
        **problems(
            "forbidden", "unknown_drop", "unknown_request", "conflict", "invalid_request", "gate_unavailable"
        ),
    },
)
async def get_grab(
    drop_id: DropId,
    out_request_no: OutRequestNo,
    principal: Reader,
    services: ServicesOf,
    partner_id: Annotated[
        str | None, Query(pattern=models.SLUG_PATTERN, description="Operators: whose number it is")
    ] = None,
) -> Response:
    """404 `unknown_request` means: nothing durable is known; send the grab again, same number."""
    standing = await visible_drop(services, principal, drop_id)
    asked = _whose(standing, principal, partner_id, out_request_no)
    found = await _committed(services, standing.drop, asked)
    if not found:
        # The stream before the ledger: a grant moves from the one to the other, never back.
        drop_no = standing.drop.drop_no
        held = await asyncio.gather(*(services.pending.holds(drop_no, *key) for key in asked))
        found = await _committed(services, standing.drop, asked)
        if not found and any(held):
            return _pending(drop_id, out_request_no)
    if not found:
        raise ProblemAnswer("unknown_request", out_request_no=out_request_no)
    if len(found) > 1:
        raise ProblemAnswer("conflict", "Several partners used this number; say which with partner_id.")
    return Response(voucher_bytes(receipt_of(standing.drop), found[0]), media_type="application/json")


@router.get(
    "/vouchers/{voucher_id}",
    operation_id="get_voucher",
    summary="Read a voucher's present state",
    responses={200: {"model": answer_models.VoucherAnswer}, **problems("forbidden", "unknown_voucher")},
)
async def get_voucher(
    voucher_id: Annotated[str, Path(min_length=1, examples=["vch_7_17"])],
    principal: Reader,
    services: ServicesOf,
) -> Response:
    """A partner sees its own vouchers."""
    name = parse_voucher_id(voucher_id)
    voucher = await reading.find_voucher(services.pool, *name) if name else None
    if voucher is None or principal.partner_no not in {None, voucher.partner_no}:
        raise ProblemAnswer("unknown_voucher")
    row = await services.pool.fetchrow(SQL["read_drop"], voucher.drop_no)
    assert row is not None, "drops are never deleted"  # noqa: S101
    receipt = receipt_of(standing_drop(row).drop)
    return Response(voucher_bytes(receipt, voucher), media_type="application/json")


@router.get(
    "/vouchers",
    operation_id="find_vouchers",
    summary="Find what a person holds of a drop",
    responses={
        200: {"model": answer_models.VoucherList},
        **problems("forbidden", "unknown_drop", "invalid_request"),
    },
)
async def find_vouchers(
    principal: Reader,
    services: ServicesOf,
    drop_id: Annotated[str, Query(pattern=models.SLUG_PATTERN)],
    person_token: Annotated[str, Query(pattern=TOKEN_PATTERN)],
) -> Response:
    """A pseudonym is one partner's own: operators and auditors are shown the matches of every partner."""
    standing = await visible_drop(services, principal, drop_id)
    vouchers = await reading.find_by_person(
        services.pool,
        standing.drop.drop_no,
        person_token,
        principal.partner_no,
        limits.LOOKUP_PAGE_MAX_COUNT,
    )
    receipt = receipt_of(standing.drop)
    return json_answer({"vouchers": [msgspec.Raw(voucher_bytes(receipt, voucher)) for voucher in vouchers]})


@router.get(
    "/drops/{drop_id}/ledger",
    operation_id="export_ledger",
    summary="Export the vouchers of a drop",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One voucher a line, in order of `seq`. Go on with `after_seq` = the last.",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        },
        **problems("forbidden", "unknown_drop", "invalid_request"),
    },
)
async def export_ledger(
    drop_id: DropId,
    principal: AuditorKey,
    services: ServicesOf,
    after_seq: Annotated[int, Query(ge=0, le=MAX_NUMBER), models.DIGITS] = 0,
    limit: Annotated[int, Query(ge=1, le=limits.LEDGER_PAGE_MAX_COUNT), models.DIGITS] = 1_000,
) -> Response:
    """Numbers of a drop are 1..issued without gaps, so a page shorter than `limit` is the last."""
    standing = await visible_drop(services, principal, drop_id)
    first = await reading.page(
        services.pool, standing.drop.drop_no, after_seq, min(limit, LEDGER_CHUNK_COUNT)
    )
    return StreamingResponse(_lines(services, standing.drop, first, limit), media_type=NDJSON)


async def _lines(
    services: Services, drop: Drop, chunk: Sequence[StandingVoucher], limit: int
) -> AsyncIterator[bytes]:
    receipt = receipt_of(drop)
    while chunk:
        yield b"".join(voucher_bytes(receipt, voucher) + b"\n" for voucher in chunk)
        limit -= len(chunk)
        wanted = min(limit, LEDGER_CHUNK_COUNT)
        if wanted == 0 or len(chunk) < LEDGER_CHUNK_COUNT:
            return
        chunk = await reading.page(services.pool, drop.drop_no, chunk[-1].seq, wanted)


def _whose(
    standing: StandingDrop, principal: Principal, partner_id: str | None, out_request_no: str
) -> list[tuple[int, str]]:
    """Numbers are unique per partner: those that the asker may mean."""
    if principal.partner_no is not None:
        return [(principal.partner_no, out_request_no)]
    return [
        (partner_no, out_request_no)
        for partner_no, name in zip(standing.partner_nos, standing.partner_ids, strict=True)
        if partner_id in {None, name}
    ]


async def _committed(services: Services, drop: Drop, asked: list[tuple[int, str]]) -> list[StandingVoucher]:
    found = await reading.find_by_requests(services.pool, asked)
    return [voucher for voucher in found.values() if voucher.drop_no == drop.drop_no]


def _pending(drop_id: str, out_request_no: str) -> Response:
    location = f"/v1/drops/{drop_id}/grabs/{quote(out_request_no, safe='@*:')}"
    content = {"status": "pending", "drop_id": drop_id, "out_request_no": out_request_no}
    return json_answer(content, 202, {"location": location})
