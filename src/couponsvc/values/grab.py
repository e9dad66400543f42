"""One attempt by one person, as it travels from the lane to the gate."""

from typing import NamedTuple


class Grab(NamedTuple):
    """A validated, authenticated grab. Field order is the order in the gate's batch.

    `holder` is `<partner_no>:<person_token>`: a person is known only within the
    partner that made the pseudonym, so both together name the natural person.
    """

    drop_no: int
    holder: str
    out_request_no: str
    channel: str
    """Empty where the partner named none."""
    region: str
    """Empty where the partner named none."""

    @property
    def partner_no(self) -> int:
        return int(self.holder[: self.holder.index(":")])

    @property
    def person_token(self) -> str:
        return self.holder[self.holder.index(":") + 1 :]


def holder_of(partner_no: int, person_token: str) -> str:
    """Name a natural person across partners: `<partner_no>:<person_token>`."""
    return f"{partner_no}:{person_token}"


def split_holder(holder: str) -> tuple[int, str]:
    """Undo `holder_of`: `(partner_no, person_token)`."""
    partner_no, _, person_token = holder.partition(":")
    return int(partner_no), person_token
