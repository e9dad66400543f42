"""Who calls, and what is said where that is not proven or not enough."""

from dataclasses import dataclass
from typing import Final

from couponsvc.programs.credential import Holder
from couponsvc.values.rate import Rate


class Unauthenticated(Exception):
    """The caller is not proven (401); the message is fit for `detail`."""


class KeyNotCached(Unauthenticated):
    """The key is not in the table but may be new: `await refresh_key(key_id)`, then check once more.

    To the outside it says the same as a wrong signature or token.
    """

    def __init__(self, detail: str, key_id: str) -> None:
        super().__init__(detail)
        self.key_id: Final = key_id


class ScopeMissing(Exception):
    """The caller is known but may not do this (403)."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs the scope {scope}; use a credential that has it.")
        self.scope: Final = scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from."""

    key_id: str
    holder: Holder
    partner_no: int | None
    """None for operators and auditors."""
    partner_id: str | None
    scopes: frozenset[str]
    rate: Rate | None = None
    """Of the partner, where it is limited."""

    def require(self, scope: str) -> None:
        """Check that the caller may do something.

        Raises:
            ScopeMissing: the credential has not that scope.
        """
        if scope not in self.scopes:
            raise ScopeMissing(scope)
