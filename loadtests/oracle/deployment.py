"""The deployment, through its HTTP API alone: figures, ledger, and grabs asked again."""

from collections.abc import AsyncGenerator
from functools import partial
from types import TracebackType
from typing import Final, Self

import httpx2
import msgspec

from couponsvc.client import Answer, AnswerLost, ApiRefused, GrabClient, Retries, Unreachable
from couponsvc.client.answers import NO_ANSWER
from couponsvc.client.driving import drive_async
from couponsvc.client.requests import Request, grab_request, look_up_request, read_request
from couponsvc.client.retrying import insist
from couponsvc.support.signing import SigningKey
from loadtests.oracle.evidence import Figures

TIMEOUT_S: Final = 30.0
"""A page of the ledger may take a second on a busy deployment."""
READS: Final = Retries(attempts_max_count=6, pause_s=0.5, pause_max_s=4.0)
"""About 11 s in all, at least half of it: reads survive a restart of 5 s."""
LEDGER_PAGE_COUNT: Final = 10_000
"""The most that the API gives in one page."""
LINE_MAX_BYTES: Final = 64 * 1024
CONNECTIONS_MAX_COUNT: Final = 32
_TOO_MANY: Final = 429
_BROKEN_FROM: Final = 500


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
        answer = await self._read(read_request("drops", drop_id), f"the drop {drop_id}")
        return msgspec.json.decode(answer.body, type=Figures)

    async def ledger(self, drop_id: str, after_seq: int = 0) -> AsyncGenerator[bytes, None]:
        """Lines of a drop's ledger, in order, from after `after_seq`; page by page, each line once.

        The next page begins after the last line's `seq`, so that a page is asked for again whole.
        """
        while True:
            query = {"after_seq": after_seq, "limit": LEDGER_PAGE_COUNT}
            request = read_request("drops", drop_id, "ledger", query=query)
            answer = await self._read(request, f"the ledger of {drop_id}")
            page = [line for line in answer.body.split(b"\n") if line]
            for line in page:
                yield line
            if len(page) < LEDGER_PAGE_COUNT:
                return
            after_seq = max(after_seq + 1, msgspec.json.decode(page[-1], type=_Seq).seq)

    async def grab(self, drop_id: str, person_token: str, out_request_no: str) -> Answer:
        """Send a grab; `lost` where nothing was answered."""
        return await self._ask(grab_request(drop_id, person_token, out_request_no))

    async def look_up(self, drop_id: str, out_request_no: str) -> Answer:
        """Ask what became of a number; `lost` where nothing was answered."""
        return await self._ask(look_up_request(drop_id, out_request_no))

    async def _ask(self, request: Request) -> Answer:
        try:
            if self._signed is not None:
                return await self._signed.exchange(request)
            assert self._partner is not None  # noqa: S101 - one of the two is there
            return await _send(self._partner, request)
        except Unreachable:
            return NO_ANSWER

    async def _read(self, request: Request, what: str) -> Answer:
        """Read as the auditor, again where the deployment is busy or away for a moment."""
        try:
            return await drive_async(insist(READS, request), partial(_send, self._auditor))
        except (Unreachable, AnswerLost) as error:
            raise Unreachable(f"{self.host} cannot be reached: {error}") from error
        except ApiRefused as error:
            if error.status == _TOO_MANY or error.status >= _BROKEN_FROM:
                raise Unreachable(f"{self.host} cannot be reached: {what}: {error}") from error
            raise Refused(
                f"{what} is answered with {error.status}; does the auditor's token have the scope audit?"
            ) from error


async def _send(http: httpx2.AsyncClient, request: Request) -> Answer:
    """Send one request with a bearer token.

    Raises:
        Unreachable: nothing was answered.
    """
    headers = {"content-type": "application/json"} if request.body else None
    try:
        response = await http.request(
            request.method.decode(), request.target.decode(), content=request.body, headers=headers
        )
    except (httpx2.TransportError, httpx2.UnsupportedProtocol) as error:
        raise Unreachable(str(error) or type(error).__name__) from error
    return Answer(response.status_code, response.content)


class _Seq(msgspec.Struct):
    seq: int
