"""What a credential is: its kinds, whom it is for, and what each holder may have."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

Kind = Literal["hmac-sha256", "ed25519", "bearer"]
Holder = Literal["partner", "operator", "auditor"]
KINDS: Final[tuple[Kind, ...]] = ("hmac-sha256", "ed25519", "bearer")

SCOPES_OF: Final[dict[Holder, frozenset[str]]] = {
    "partner": frozenset({"grab", "read", "redeem"}),
    "operator": frozenset({"operate", "read", "audit"}),
    "auditor": frozenset({"audit", "read"}),
}
"""What each holder may be given at most, and is given where nothing else is asked."""


class InvalidCredential(ValueError):
    """What is asked for cannot be made; the message says what can."""


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential just made. `secret` and `token` are shown once, and never by `repr`."""

    key_id: str
    kind: Kind
    holder: Holder
    partner_id: str | None
    scopes: tuple[str, ...]
    expires_at: datetime | None
    secret: str | None = field(default=None, repr=False)
    """hmac-sha256: standard base64 of the key."""
    token: str | None = field(default=None, repr=False)
    """bearer: the token."""


@dataclass(frozen=True, slots=True)
class CredentialRequest:
    """What credential is wanted."""

    holder: Holder
    kind: Kind
    partner_id: str | None = None
    scopes: frozenset[str] | None = None
    """None: all that the holder may have."""
    public_key: str | None = field(default=None, repr=False)
    """ed25519: base64 of 32 raw bytes, or PEM."""
    label: str = ""
    expires_at: datetime | None = None


def checked_scopes(request: CredentialRequest) -> tuple[str, ...]:
    """Scopes to give, sorted.

    Raises:
        InvalidCredential: kind, scopes and holder do not fit together.
    """
    allowed = SCOPES_OF[request.holder]
    scopes = allowed if request.scopes is None else request.scopes
    if not scopes or not scopes <= allowed:
        raise InvalidCredential(f"A credential of {request.holder} may have: {', '.join(sorted(allowed))}.")
    if (request.holder == "partner") != (request.partner_id is not None):
        raise InvalidCredential("A partner's credential names the partner; others name none.")
    if (request.kind == "ed25519") != (request.public_key is not None):
        raise InvalidCredential("An ed25519 credential needs the holder's public key; others take none.")
    return tuple(sorted(scopes))
