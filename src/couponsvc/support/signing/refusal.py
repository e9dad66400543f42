"""What `verify` raises."""

from typing import Final


class SignatureRefused(Exception):
    """The request is not proven; `reason` says what to do and holds no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class UnknownSigner(SignatureRefused):
    """As `SignatureRefused`, where no key of that id is known: it may only be new.

    `reason` is the same as for a wrong signature; callers must not tell the two apart to
    the outside.
    """

    def __init__(self, reason: str, key_id: str) -> None:
        super().__init__(reason)
        self.key_id: Final = key_id
