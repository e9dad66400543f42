"""Define what a scenario needs, through the API: a program, templates, drops that open together.

Every run gets drops of its own, named `<run>-<drop>`, so that nothing of an earlier run is judged
again and nobody's real drops are touched.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from couponsvc.client import ApiClient
from loadtests.plan import CLOCK_STOCK_COUNT, Plan, PlannedDrop
from loadtests.scenario import Drop, Scenario

PROGRAM_ID: Final = "load-tests"
VALID_FOR_HOURS: Final = 48
DAY_MS: Final = 86_400_000.0
CLOCK_DROP: Final = "clock"


def define_program(api: ApiClient) -> None:
    """The program that all load tests share.

    Raises:
        ApiRefused, Unreachable: see ApiClient.
    """
    api.put(f"/v1/programs/{PROGRAM_ID}", {"name": "load tests", "region": ""})
    _template(api, CLOCK_DROP, 1, 0)


def define_clock_drop(api: ApiClient, run: str, partner_id: str, now_ms: float) -> str:
    """A drop that is open from yesterday to tomorrow (by any clock), to read the time from.

    Returns:
        Its id.

    Raises:
        ApiRefused, Unreachable: see ApiClient.
    """
    clock = PlannedDrop(
        drop_id=f"{run}-{CLOCK_DROP}",
        name=CLOCK_DROP,
        quantity=CLOCK_STOCK_COUNT,
        per_person_limit=1,
        opens_ms=now_ms - DAY_MS,
        closes_ms=now_ms + DAY_MS,
    )
    _put(api, clock, partner_id)
    return clock.drop_id


def define_drops(
    api: ApiClient,
    scenario: Scenario,
    *,
    run: str,
    persons_count: int,
    partner_id: str,
    opens_ms: float,
    clock_drop_id: str = "",
) -> Plan:
    """Define templates and drops of a scenario; the program must be there.

    Args:
        api: With an operator's token.
        scenario: Says which drops.
        run: Prefix of their names.
        persons_count: How many come; stocks are in proportion.
        partner_id: Who may grab.
        opens_ms: The opening of the run, by the deployment's clock.
        clock_drop_id: For the plan.

    Raises:
        ApiRefused, Unreachable: see ApiClient.
    """
    for drop in scenario.drops:
        _template(api, drop.name, drop.face_value_fen, drop.min_spend_fen)
    drops = [
        planned
        for drop in scenario.drops
        for planned in _planned(scenario, drop, run, persons_count, opens_ms)
    ]
    for planned in drops:
        _put(api, planned, partner_id)
    return Plan(
        scenario=scenario.scenario,
        persons=persons_count,
        opens_ms=opens_ms,
        drops=drops,
        clock_drop_id=clock_drop_id,
    )


def _planned(
    scenario: Scenario, drop: Drop, run: str, persons_count: int, opens_ms: float
) -> Iterator[PlannedDrop]:
    for number in range(1, drop.count + 1):
        mark = f"-{number}" if drop.count > 1 else ""
        drop_opens_ms = opens_ms + drop.opens_s * 1_000
        yield PlannedDrop(
            drop_id=f"{run}-{drop.name}{mark}",
            name=drop.name,
            quantity=scenario.quantity(drop, persons_count),
            per_person_limit=drop.per_person_limit,
            opens_ms=drop_opens_ms,
            closes_ms=drop_opens_ms + drop.stays_open_s * 1_000,
        )


def _template(api: ApiClient, name: str, face_value_fen: int, min_spend_fen: int) -> None:
    api.put(
        f"/v1/programs/{PROGRAM_ID}/templates/{name}",
        {
            "name": name,
            "face_value_fen": face_value_fen,
            "min_spend_fen": min_spend_fen,
            "valid_for_hours": VALID_FOR_HOURS,
        },
    )


def _put(api: ApiClient, drop: PlannedDrop, partner_id: str) -> None:
    api.put(
        f"/v1/drops/{drop.drop_id}",
        {
            "program_id": PROGRAM_ID,
            "template_id": drop.name,
            "quantity": drop.quantity,
            "per_person_limit": drop.per_person_limit,
            "opens_at": _moment(drop.opens_ms),
            "closes_at": _moment(drop.closes_ms),
            "partners": [partner_id],
        },
    )


def _moment(unix_ms: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(round(unix_ms) / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
