"""Programs and their voucher templates: define, read, list."""

from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Path, Query, Request, Response

from couponsvc import limits
from couponsvc.api import answer_models, models
from couponsvc.api.access import OperatorKey, Reader, ServicesOf
from couponsvc.api.answers import json_answer
from couponsvc.api.openapi import body_of, problems
from couponsvc.api.problems import ProblemAnswer
from couponsvc.programs import definitions
from couponsvc.programs.definitions import SQL
from couponsvc.programs.telling import announce
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.moment import HOUR_MS, rfc3339, unix_ms

router = APIRouter(prefix="/v1/programs", tags=["programs"])

ProgramId = Annotated[str, Path(pattern=models.SLUG_PATTERN, examples=["qingdao-2022"])]
TemplateId = Annotated[str, Path(pattern=models.SLUG_PATTERN, examples=["dining-20"])]


@router.put(
    "/{program_id}",
    operation_id="put_program",
    summary="Create or update a program",
    status_code=201,
    responses={
        201: {"model": answer_models.ProgramAnswer, "description": "Created"},
        200: {"model": answer_models.ProgramAnswer, "description": "Updated, or nothing to change"},
        **problems("forbidden", "body_too_large", "invalid_request", "gate_unavailable"),
    },
    openapi_extra=body_of(models.ProgramBody),
)
async def put_program(
    program_id: ProgramId, request: Request, principal: OperatorKey, services: ServicesOf
) -> Response:
    """Idempotent. A changed region counts for grabs from now on, of every drop that is not closed."""
    body = models.read_body(await request.body(), models.ProgramBody)
    change, drops = await definitions.define_program(
        services.pool,
        services.master_key,
        principal.key_id,
        program_id=program_id,
        name=body.name,
        region=body.region,
    )
    for shard, drop_no in drops:
        await announce(services.redis, shard, drop_no)
    answer = await _find_program(services.pool, program_id, None)
    return json_answer(_program(answer), 201 if change.created else 200)


@router.get(
    "/{program_id}",
    operation_id="get_program",
    summary="Read a program",
    responses={
        200: {"model": answer_models.ProgramAnswer},
        **problems("forbidden", "unknown_program", "invalid_request"),
    },
)
async def get_program(program_id: ProgramId, principal: Reader, services: ServicesOf) -> Response:
    """A partner sees the programs of its own drops."""
    row = await _find_program(services.pool, program_id, principal.partner_no)
    return json_answer(_program(row))


@router.get(
    "",
    operation_id="list_programs",
    summary="List programs",
    responses={200: {"model": answer_models.ProgramList}, **problems("forbidden", "invalid_request")},
)
async def list_programs(
    principal: Reader,
    services: ServicesOf,
    after: models.After = "",
    limit: Annotated[int, Query(ge=1, le=limits.DEFINITIONS_PAGE_MAX_COUNT), models.DIGITS] = 100,
) -> Response:
    """In the order of their names. A partner sees the programs of its own drops."""
    rows = await services.pool.fetch(SQL["list_programs"], after, limit, principal.partner_no)
    last = rows[-1]["program_id"] if len(rows) == limit else None
    return json_answer({"programs": [_program(row) for row in rows], "next": last})


@router.put(
    "/{program_id}/templates/{template_id}",
    operation_id="put_template",
    summary="Create or update a voucher template",
    status_code=201,
    responses={
        201: {"model": answer_models.TemplateAnswer, "description": "Created"},
        200: {"model": answer_models.TemplateAnswer, "description": "Updated, or nothing to change"},
        **problems("forbidden", "unknown_program", "body_too_large", "invalid_request"),
    },
    openapi_extra=body_of(models.TemplateBody),
)
async def put_template(
    program_id: ProgramId,
    template_id: TemplateId,
    request: Request,
    principal: OperatorKey,
    services: ServicesOf,
) -> Response:
    """Idempotent. A drop takes the terms over when it is defined; a frozen drop keeps those it has."""
    body = models.read_body(await request.body(), models.TemplateBody)
    change = await definitions.define_template(
        services.pool,
        principal.key_id,
        program_id=program_id,
        template_id=template_id,
        name=body.name,
        terms=VoucherTerms(body.face_value_fen, body.min_spend_fen, body.valid_for_hours * HOUR_MS),
    )
    answer = await _find_template(services.pool, program_id, template_id)
    return json_answer(_template(program_id, answer), 201 if change.created else 200)


@router.get(
    "/{program_id}/templates/{template_id}",
    operation_id="get_template",
    summary="Read a voucher template",
    responses={
        200: {"model": answer_models.TemplateAnswer},
        **problems("forbidden", "unknown_program", "unknown_template", "invalid_request"),
    },
)
async def get_template(
    program_id: ProgramId, template_id: TemplateId, principal: Reader, services: ServicesOf
) -> Response:
    """As it stands now; drops show the terms that count for them."""
    await _find_program(services.pool, program_id, principal.partner_no)
    return json_answer(_template(program_id, await _find_template(services.pool, program_id, template_id)))


@router.get(
    "/{program_id}/templates",
    operation_id="list_templates",
    summary="List the voucher templates of a program",
    responses={
        200: {"model": answer_models.TemplateList},
        **problems("forbidden", "unknown_program", "invalid_request"),
    },
)
async def list_templates(program_id: ProgramId, principal: Reader, services: ServicesOf) -> Response:
    """In the order of their names."""
    program = await _find_program(services.pool, program_id, principal.partner_no)
    rows = await services.pool.fetch(SQL["list_templates"], program["program_no"])
    return json_answer({"templates": [_template(program_id, row) for row in rows]})


async def _find_program(pool: definitions.Pool, program_id: str, partner_no: int | None) -> asyncpg.Record:
    row = await pool.fetchrow(SQL["find_program"], program_id, partner_no)
    if row is None:
        raise ProblemAnswer("unknown_program", f"There is no program named {program_id}.")
    return row


async def _find_template(pool: definitions.Pool, program_id: str, template_id: str) -> asyncpg.Record:
    row = await pool.fetchrow(SQL["find_template"], program_id, template_id)
    if row is None:
        raise ProblemAnswer("unknown_template", f"Program {program_id} has no template named {template_id}.")
    return row


def _program(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "program_id": row["program_id"],
        "name": row["name"],
        "region": row["region"],
        "created_at": rfc3339(unix_ms(row["created_at"])),
        "updated_at": rfc3339(unix_ms(row["updated_at"])),
    }


def _template(program_id: str, row: asyncpg.Record) -> dict[str, Any]:
    return {
        "program_id": program_id,
        "template_id": row["template_id"],
        "name": row["name"],
        "face_value_fen": row["face_value_fen"],
        "min_spend_fen": row["min_spend_fen"],
        "valid_for_hours": row["valid_for_ms"] // HOUR_MS,
        "created_at": rfc3339(unix_ms(row["created_at"])),
        "updated_at": rfc3339(unix_ms(row["updated_at"])),
    }
