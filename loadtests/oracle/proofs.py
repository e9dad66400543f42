"""The records that prove a violation, as an operator may see them: persons and codes are pseudonyms."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from hashlib import blake2b
from secrets import token_bytes
from typing import Final

from loadtests.oracle.tracks import read_voucher
from loadtests.oracle.verdict import PROOFS_MAX_COUNT, Proof
from loadtests.records import Answered

PSEUDONYM_BYTES: Final = 4
"""Eight characters tell the few persons of a verdict apart."""


class Pseudonyms:
    """Names persons by a keyed hash; the key is new with every verdict and kept nowhere.

    So a report cannot be matched against a list of persons, nor with another report.
    """

    def __init__(self) -> None:
        self._key: Final = token_bytes(32)

    def of(self, secret: str) -> str:
        """The same short name for the same person or code, within one verdict."""
        return blake2b(secret.encode(), key=self._key, digest_size=PSEUDONYM_BYTES).hexdigest()


def gather(records: Iterable[Answered], numbers: Collection[str], began_ms: float) -> dict[str, list[Proof]]:
    """The first PROOFS_MAX_COUNT records of each number, in the order they are read."""
    pseudonyms = Pseudonyms()
    found: dict[str, list[Proof]] = defaultdict(list)
    if not numbers:
        return found
    for record in records:
        number = record.out_request_no
        if number in numbers and len(found[number]) < PROOFS_MAX_COUNT:
            found[number].append(_proof(record, pseudonyms, began_ms))
    return found


def _proof(record: Answered, pseudonyms: Pseudonyms, began_ms: float) -> Proof:
    voucher = read_voucher(record.voucher) if record.voucher else None
    named = "unreadable" if record.voucher else ""
    if voucher is not None:
        holder = "" if voucher.person_token == record.person_token else " of another person"
        named = f"{voucher.voucher_id} seq {voucher.seq} code {pseudonyms.of(voucher.code)}{holder}"
    return Proof(
        person=pseudonyms.of(record.person_token),
        out_request_no=record.out_request_no,
        drop_id=record.drop_id,
        worker=record.worker,
        action=record.action,
        sent_ms=round(record.sent_ms - began_ms, 3),
        answered_ms=round(record.answered_ms - began_ms, 3),
        status=record.status,
        code=record.code,
        voucher=named,
    )
