"""The deployment, through its HTTP API alone: figures, ledger, and grabs asked again."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx2
import msgspec

from couponsvc.client import Answer, GrabClient, Unreachable
from couponsvc.client.answers import NO_ANSWER
from couponsvc.support.signing import SigningKey
from loadtests.oracle.evidence import Figures

TIMEOUT_S: Final = 30.0
"""A page of the ledger may take a second on a busy deployment."""
TRIES_MAX_COUNT: Final = 5
PAUSE_S: Final = 0.5
"""Before a read is tried again; grows by itself each time, so that reads survive a restart of 5 s."""
LEDGER_PAGE_COUNT: Final = 10_000
"""The most that the API gives in one page."""
LINE_MAX_BYTES: Final = 64 * 1024
CONNECTIONS_MAX_COUNT: Final = 32
_OK: Final = 200
_BUSY: Final = frozenset({429, 500, 502, 503, 504})

_Found = TypeVar("_Found")


class Refused(Exception):
    """The deployment does not let the oracle read; the message says which credential to look at."""


class Deployment:
    """A deployment under judgement. Use it as an asynchronous context.

    Raises:
        Unreachable: from every read, if nobody listens there or answers in time.
        Refused: from every read, if a token may not do that.
    """

    def __init__(self, host: str, *, auditor_token: str, partner: SigningKey | str) -> None:
        """Know where and as whom to ask; nothing is sent yet.

        `partner`: a key that signs, or a bearer token where the partner's credential allows one.

        Raises:
            Unreachable: the host is no address.
        """
        self.host: Final = host.rstrip("/")
        try:
            self._auditor: Final = self._http(auditor_token)
            self._partner: Final = self._http(partner) if isinstance(partner, str) else None
            self._signed: Final = None if isinstance(partner, str) else self._signing(partner)
        except (httpx2.InvalidURL, ValueError) as error:
            raise Unreachable(f"{self.host} is no address: {error}") from error

    def _http(self, token: str) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {token}"}
        limits = httpx2.Limits(max_connections=CONNECTIONS_MAX_COUNT)
        secure = self.host.startswith("https:")  # without TLS no certificates need to be read
        return httpx2.AsyncClient(
            base_url=self.host,
            headers=headers,
            timeout=TIMEOUT_S,
            limits=limits,
            trust_env=False,
            verify=secure,
        )

    def _signing(self, key: SigningKey) -> GrabClient:
        return GrabClient(self.host, key, connections_max_count=CONNECTIONS_MAX_COUNT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._auditor.aclose()
        if self._partner is not None:
            await self._partner.aclose()
        if self._signed is not None:
            self._signed.close()

    async def figures(self, drop_id: str) -> Figures:
        """State and figures of a drop."""

        async def read() -> Figures:
            response = await self._auditor.get(f"/v1/drops/{drop_id}")
            _check(response, f"the drop {drop_id}")
            return msgspec.json.decode(response.content, type=Figures)

        return await self._patiently(read)

    async def ledger(self, drop_id: str, after_seq: int = 0) -> AsyncGenerator[bytes, None]:
        """Lines of a drop's ledger, in order, from after `after_seq`; page by page, each line once.

        The next page begins after the last line's `seq`, so that a page is asked for again whole.
        """
        while True:
            page = await self._patiently(lambda after=after_seq: self._page(drop_id, after))  # type: ignore[misc] # mypy: a default of a lambda
            for line in page:
                yield line
            if len(page) < LEDGER_PAGE_COUNT:
                return
            after_seq = max(after_seq + 1, msgspec.json.decode(page[-1], type=_Seq).seq)

    async def _page(self, drop_id: str, after_seq: int) -> list[bytes]:
        response = await self._auditor.get(
            f"/v1/drops/{drop_id}/ledger", params={"after_seq": after_seq, "limit": LEDGER_PAGE_COUNT}
        )
        _check(response, f"the ledger of {drop_id}")
        return [line for line in response.content.split(b"\n") if line]

    async def grab(self, drop_id: str, person_token: str, out_request_no: str) -> Answer:
        """Send a grab; `lost` where nothing was answered."""
        try:
            if self._signed is not None:
                return await self._signed.grab(drop_id, person_token, out_request_no)
            assert self._partner is not None  # noqa: S101 - one of the two is there
            body = {"person_token": person_token, "out_request_no": out_request_no}
            response = await self._partner.post(f"/v1/drops/{drop_id}/grabs", json=body)
        except (Unreachable, httpx2.TransportError):
            return NO_ANSWER
        return Answer(response.status_code, response.content)

    async def look_up(self, drop_id: str, out_request_no: str) -> Answer:
        """Ask what became of a number; `lost` where nothing was answered."""
        try:
            if self._signed is not None:
                return await self._signed.look_up(drop_id, out_request_no)
            assert self._partner is not None  # noqa: S101 - one of the two is there
            response = await self._partner.get(f"/v1/drops/{drop_id}/grabs/{out_request_no}")
        except (Unreachable, httpx2.TransportError):
            return NO_ANSWER
        return Answer(response.status_code, response.content)

    async def _patiently(self, read: Callable[[], Awaitable[_Found]]) -> _Found:
        for attempt in range(1, TRIES_MAX_COUNT + 1):
            try:
                return await read()
            except (httpx2.TransportError, httpx2.UnsupportedProtocol, _Busy) as error:
                if attempt == TRIES_MAX_COUNT:
                    why = str(error) or type(error).__name__
                    raise Unreachable(f"{self.host} cannot be reached: {why}") from error
                await asyncio.sleep(PAUSE_S * attempt)
        raise AssertionError("the loop returns or raises")


class _Seq(msgspec.Struct):
    seq: int


class _Busy(Exception):
    """Ask again."""


def _check(response: httpx2.Response, what: str) -> None:
    status = response.status_code
    if status in _BUSY:
        raise _Busy(f"{what} is answered with {status}")
    if status != _OK:
        raise Refused(f"{what} is answered with {status}; does the auditor's token have the scope audit?")
