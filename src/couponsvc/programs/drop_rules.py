"""Which changes of a drop keep its promises. Pure: no input, no output.

A drop is *frozen* once its window has opened or a voucher of it was issued: from then on its
program, template, terms and limit per person stand. Its window may be extended, its quantity
raised, and lowered down to what nobody was granted.
"""

from dataclasses import dataclass

from couponsvc.programs.definitions import Conflict, DropDefinition, StandingDrop
from couponsvc.values.drop import DropStatus, VoucherTerms
from couponsvc.values.moment import rfc3339, unix_ms


@dataclass(frozen=True, slots=True)
class Plan:
    """What a definition changes of a standing drop, after every rule said yes."""

    fields: tuple[str, ...]
    """Names of what changes; empty: nothing."""
    bumps_epoch: bool
    """The rules of a grant change, so grants under the old ones must be refused."""
    terms: VoucherTerms
    """What the drop's vouchers are worth from now on."""
    quantity_step: int
    """Units added; negative: taken away."""


def plan_change(
    standing: StandingDrop,
    wanted: DropDefinition,
    template_terms: VoucherTerms,
    now_ms: int,
) -> Plan:
    """Compare what stands with what is wanted.

    Args:
        standing: The drop, its row locked.
        wanted: What the operator said.
        template_terms: Of the wanted template, as it stands now.
        now_ms: By the clock of Redis.

    Raises:
        Conflict: the change would break a promise; the message says which.
    """
    drop = standing.drop
    opened = now_ms >= drop.opens_ms
    frozen = opened or standing.issued > 0
    terms = drop.terms if frozen else template_terms
    differing = {
        "program_id": drop.program_id != wanted.program_id,
        "template_id": drop.template_id != wanted.template_id,
        "per_person_limit": drop.per_person_limit != wanted.per_person_limit,
        "terms": drop.terms != terms,
        "quantity": drop.quantity != wanted.quantity,
        "opens_at": drop.opens_ms != unix_ms(wanted.opens_at),
        "closes_at": drop.closes_ms != unix_ms(wanted.closes_at),
        "partners": set(standing.partner_ids) != wanted.partners,
    }
    fields = tuple(name for name, differs in differing.items() if differs)
    rules = tuple(
        name for name in ("program_id", "template_id", "per_person_limit", "terms") if differing[name]
    )
    if fields and drop.status is DropStatus.CLOSED:
        raise Conflict(f"Drop {drop.drop_id} is closed for good; define a new drop.")
    if rules and frozen:
        why = "its window has opened" if opened else "a voucher of it was issued"
        raise Conflict(f"{', '.join(rules)} of drop {drop.drop_id} cannot change, because {why}.")
    _check_window(standing, wanted, now_ms)
    check_quantity(standing, wanted.quantity)
    return Plan(fields, bool(rules), terms, wanted.quantity - drop.quantity)


def check_quantity(standing: StandingDrop, quantity: int) -> None:
    """Refuse a quantity that is below what is issued.

    Raises:
        Conflict: it is.
    """
    if quantity < standing.issued:
        raise Conflict(
            f"{standing.issued} vouchers of drop {standing.drop.drop_id} are issued; "
            f"its quantity cannot be {quantity}."
        )


def _check_window(standing: StandingDrop, wanted: DropDefinition, now_ms: int) -> None:
    drop = standing.drop
    if now_ms < drop.opens_ms:
        return
    if unix_ms(wanted.opens_at) > drop.opens_ms:
        raise Conflict(
            f"Drop {drop.drop_id} opened at {rfc3339(drop.opens_ms)}; it cannot open later. Pause it instead."
        )
    if unix_ms(wanted.closes_at) < drop.closes_ms:
        raise Conflict(
            f"Drop {drop.drop_id} has opened and is promised until {rfc3339(drop.closes_ms)}; "
            "the window may only be extended. To end it now, close it."
        )
