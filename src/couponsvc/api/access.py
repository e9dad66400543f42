"""Who may do what: scopes, and a partner's view of drops."""

from typing import Annotated, Final

from fastapi import Depends, Request

from couponsvc.api.auth import Principal
from couponsvc.api.problems import ProblemAnswer
from couponsvc.api.services import Services
from couponsvc.programs.definitions import StandingDrop, find_drop

_IMPLIES_READ: Final = frozenset({"read", "operate", "audit"})
_EVENTS_OF_THE_HOUSE: Final = (
    "Events are a partner's: this needs a partner's credential with the scope read. "
    "Operators see them with `couponsvc events tail`, `deliveries` and `redeliver`."
)


def services_of(request: Request) -> Services:
    """The services of this process."""
    services: Services = request.app.state.services
    return services


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


def reader(request: Request) -> Principal:
    """Who asks; needs `read`, which operators and auditors have by their trade.

    Raises:
        ProblemAnswer: `forbidden`.
    """
    principal = _principal(request)
    if not _IMPLIES_READ & principal.scopes:
        raise ProblemAnswer("forbidden", "This needs a credential with the scope read.")
    return principal


def partner_reader(request: Request) -> Principal:
    """Who hears of events: a partner with `read`, because an event belongs to one partner.

    Raises:
        ProblemAnswer: `forbidden`.
    """
    principal = _principal(request)
    if principal.partner_no is None:
        raise ProblemAnswer("forbidden", _EVENTS_OF_THE_HOUSE)
    return reader(request)


def operator(request: Request) -> Principal:
    """Who changes definitions; needs `operate` and is no partner.

    Raises:
        ProblemAnswer: `forbidden`.
    """
    return _of_the_house(_principal(request), "operate")


def auditor(request: Request) -> Principal:
    """Who reads whole ledgers, of all partners; needs `audit` and is no partner.

    Raises:
        ProblemAnswer: `forbidden`.
    """
    return _of_the_house(_principal(request), "audit")


def _of_the_house(principal: Principal, scope: str) -> Principal:
    if scope not in principal.scopes or principal.partner_no is not None:
        raise ProblemAnswer(
            "forbidden", f"This needs a credential with the scope {scope} that is not a partner's."
        )
    return principal


Reader = Annotated[Principal, Depends(reader)]
PartnerReader = Annotated[Principal, Depends(partner_reader)]
OperatorKey = Annotated[Principal, Depends(operator)]
AuditorKey = Annotated[Principal, Depends(auditor)]
ServicesOf = Annotated[Services, Depends(services_of)]


async def visible_drop(services: Services, principal: Principal, drop_id: str) -> StandingDrop:
    """A drop as Postgres holds it now, where this principal may see it.

    Raises:
        ProblemAnswer: `unknown_drop`; what belongs to another is not known either.
    """
    standing = await find_drop(services.pool, drop_id, principal.partner_no)
    if standing is None:
        raise ProblemAnswer("unknown_drop")
    return standing
