"""Drops: define, read, list, pause, resume, close, restock."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from couponsvc import limits
from couponsvc.api import answer_models, models
from couponsvc.api.access import OperatorKey, Reader, ServicesOf, visible_drop
from couponsvc.api.answers import json_answer
from couponsvc.api.auth import Principal
from couponsvc.api.openapi import body_of, problems
from couponsvc.api.services import Services
from couponsvc.programs import definitions, operations
from couponsvc.programs.definitions import DropDefinition, StandingDrop
from couponsvc.programs.figures import read_figures
from couponsvc.values.drop import DropStatus
from couponsvc.values.moment import HOUR_MS, rfc3339

router = APIRouter(prefix="/v1/drops", tags=["drops"])

DropId = Annotated[str, Path(pattern=models.SLUG_PATTERN, examples=["qingdao-2022-w31-wed-dining-20"])]
_CHANGED: dict[int | str, dict[str, Any]] = {
    200: {"model": answer_models.DropAnswer, "description": "As it stands now"},
    **problems("forbidden", "unknown_drop", "conflict", "invalid_request", "gate_unavailable"),
}


@router.put(
    "/{drop_id}",
    operation_id="put_drop",
    summary="Create or update a drop",
    status_code=201,
    responses={
        201: {"model": answer_models.DropAnswer, "description": "Created"},
        200: {"model": answer_models.DropAnswer, "description": "Updated, or nothing to change"},
        **problems(
            "forbidden",
            "unknown_program",
            "unknown_template",
            "unknown_partner",
            "conflict",
            "body_too_large",
            "invalid_request",
            "rebuilding",
            "gate_unavailable",
        ),
    },
    openapi_extra=body_of(models.DropBody),
)
async def put_drop(
    drop_id: DropId, request: Request, principal: OperatorKey, services: ServicesOf
) -> Response:
    """Idempotent. Once the window has opened or a voucher was issued, the drop is frozen.

    Then program, template, terms and limit stand; the window may be extended, and the quantity raised,
    or lowered to what nobody was granted. Anything else is a `conflict`.
    """
    body = models.read_body(await request.body(), models.DropBody)
    wanted = DropDefinition(
        drop_id=drop_id,
        program_id=body.program_id,
        template_id=body.template_id,
        quantity=body.quantity,
        per_person_limit=body.per_person_limit,
        opens_at=body.opens_at,
        closes_at=body.closes_at,
        partners=frozenset(body.partners),
    )
    change = await operations.define_drop(_operator(services, principal), wanted)
    return await _changed(services, principal, drop_id, 201 if change.created else 200)


@router.get(
    "/{drop_id}",
    operation_id="get_drop",
    summary="Read a drop with its state and figures",
    responses={
        200: {"model": answer_models.DropAnswer},
        **problems("forbidden", "unknown_drop", "invalid_request", "gate_unavailable"),
    },
)
async def get_drop(drop_id: DropId, principal: Reader, services: ServicesOf) -> Response:
    """`available + pending + issued = quantity`, except while `rebuilding` (0, 0, issued).

    `sold_out` means for good: nothing is available and nothing pending could come back.
    """
    return await _answer(services, principal, drop_id)


@router.get(
    "",
    operation_id="list_drops",
    summary="List drops",
    responses={200: {"model": answer_models.DropList}, **problems("forbidden", "invalid_request")},
)
async def list_drops(
    principal: Reader,
    services: ServicesOf,
    after: models.After = "",
    limit: Annotated[int, Query(ge=1, le=limits.DEFINITIONS_PAGE_MAX_COUNT), models.DIGITS] = 100,
    program_id: Annotated[str | None, Query(pattern=models.SLUG_PATTERN)] = None,
) -> Response:
    """In the order of their names, without the figures that only the gate knows."""
    drops = await definitions.list_drops(
        services.pool, after=after, limit=limit, partner_no=principal.partner_no, program_id=program_id
    )
    last = drops[-1].drop.drop_id if len(drops) == limit else None
    return json_answer({"drops": [_definition(drop, principal) for drop in drops], "next": last})


@router.post("/{drop_id}/pause", operation_id="pause_drop", summary="Pause a drop", responses=_CHANGED)
async def pause_drop(drop_id: DropId, principal: OperatorKey, services: ServicesOf) -> Response:
    """Grabs are refused with `paused` until it is resumed. What was granted is still confirmed."""
    return await _set_status(services, principal, drop_id, DropStatus.PAUSED)


@router.post(
    "/{drop_id}/resume", operation_id="resume_drop", summary="Resume a paused drop", responses=_CHANGED
)
async def resume_drop(drop_id: DropId, principal: OperatorKey, services: ServicesOf) -> Response:
    """A closed drop cannot be resumed."""
    return await _set_status(services, principal, drop_id, DropStatus.ACTIVE)


@router.post(
    "/{drop_id}/close", operation_id="close_drop", summary="Close a drop for good", responses=_CHANGED
)
async def close_drop(drop_id: DropId, principal: OperatorKey, services: ServicesOf) -> Response:
    """Grabs are refused with `ended` from now on. What was granted is still confirmed."""
    return await _set_status(services, principal, drop_id, DropStatus.CLOSED)


@router.post(
    "/{drop_id}/restock",
    operation_id="restock_drop",
    summary="Add stock to a drop",
    responses={**_CHANGED, **problems("body_too_large")},
    openapi_extra=body_of(models.RestockBody),
)
async def restock_drop(
    drop_id: DropId, request: Request, principal: OperatorKey, services: ServicesOf
) -> Response:
    """Compare-and-set: where the quantity is no longer `current_quantity`, nothing is added (409)."""
    body = models.read_body(await request.body(), models.RestockBody)
    await operations.restock(
        _operator(services, principal), drop_id, current_quantity=body.current_quantity, add=body.add
    )
    return await _changed(services, principal, drop_id)


async def _set_status(services: Services, principal: Principal, drop_id: str, status: DropStatus) -> Response:
    await operations.set_status(_operator(services, principal), drop_id, status)
    return await _changed(services, principal, drop_id)


async def _changed(services: Services, principal: Principal, drop_id: str, status: int = 200) -> Response:
    """Answer with the drop as it stands, and know it in this process at once."""
    await services.catalog.refresh(drop_id)
    return await _answer(services, principal, drop_id, status)


async def _answer(services: Services, principal: Principal, drop_id: str, status: int = 200) -> Response:
    standing = await visible_drop(services, principal, drop_id)
    figures = await read_figures(services.pool, services.redis, standing)
    content = {
        **_definition(standing, principal),
        "state": figures.state,
        "available": figures.available,
        "pending": figures.pending,
        "issued": figures.issued,
    }
    return json_answer(content, status)


def _operator(services: Services, principal: Principal) -> operations.Operator:
    return operations.Operator(services.pool, services.redis, services.settings.shard, principal.key_id)


def _definition(standing: StandingDrop, principal: Principal) -> dict[str, Any]:
    """A drop's definition; a partner is not told who else takes part."""
    drop = standing.drop
    others = standing.partner_ids
    return {
        "drop_id": drop.drop_id,
        "program_id": drop.program_id,
        "template_id": drop.template_id,
        "quantity": drop.quantity,
        "per_person_limit": drop.per_person_limit,
        "opens_at": rfc3339(drop.opens_ms),
        "closes_at": rfc3339(drop.closes_ms),
        "partners": others if principal.partner_no is None else [principal.partner_id],
        "face_value_fen": drop.terms.face_value_fen,
        "min_spend_fen": drop.terms.min_spend_fen,
        "valid_for_hours": drop.terms.valid_for_ms // HOUR_MS,
        "issued": standing.issued,
        "sold_out_at": None if standing.sold_out_ms is None else rfc3339(standing.sold_out_ms),
    }
