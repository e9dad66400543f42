"""The clients for partners: one blocking, one for event loops; both carry out the same steps."""

import inspect
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, get_args

import httpx2

from couponsvc.client import calls, retrying
from couponsvc.client.answers import NO_ANSWER, Answer
from couponsvc.client.connection import Unreachable, split_url
from couponsvc.client.credentials import Credentials, signing_key
from couponsvc.client.driving import drive, drive_async
from couponsvc.client.events import BEGINNING, Event
from couponsvc.client.following import feed_page
from couponsvc.client.grabbing import TIMEOUT_S, GrabClient
from couponsvc.client.in_time import InTime, request_in_time, within
from couponsvc.client.requests import Request
from couponsvc.client.retrying import PATIENT, Retries, Steps
from couponsvc.support.signing import SigningKey

C = TypeVar("C", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

KEEP_ALIVE_S: Final = 30.0
"""Shorter than the service (75 s) or a load balancer (60 s) keeps a silent connection, so that no
request meets its closing."""


def _blocking(
    steps: Callable[Concatenate[Retries, P], Steps[T]],
) -> "Callable[Concatenate[PartnerClient, P], T]":
    @wraps(steps)
    def call(self: "PartnerClient", /, *args: P.args, **named: P.kwargs) -> T:
        return drive(steps(self.retries, *args, **named), self.send)

    return _described(call, steps)


def _awaited(
    steps: Callable[Concatenate[Retries, P], Steps[T]],
) -> "Callable[Concatenate[AsyncPartnerClient, P], Coroutine[Any, Any, T]]":
    @wraps(steps)
    async def call(self: "AsyncPartnerClient", /, *args: P.args, **named: P.kwargs) -> T:
        return await drive_async(steps(self.retries, *args, **named), self.send)

    return _described(call, steps)


def _described(call: C, steps: Callable[..., Steps[T]]) -> C:
    """`call` as `help` should show it: a method that returns what the steps end with."""
    signature = inspect.signature(steps)
    _, *others = signature.parameters.values()
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    result = get_args(signature.return_annotation)[-1]
    call.__signature__ = signature.replace(parameters=[self, *others], return_annotation=result)  # type: ignore[attr-defined] # functions have it
    return call


class _Signed(ABC):
    """What both clients know: where, who, and how patient."""

    def __init__(
        self,
        base_url: str,
        key_id: str,
        secret: str | SigningKey,
        *,
        retries: Retries = PATIENT,
        timeout_s: float = TIMEOUT_S,
        connections_max_count: int = 64,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            base_url: `https://host[:port]`.
            key_id: Of the partner's key.
            secret: Standard base64 of an HMAC key, as shown when the key was made; or a key of
                another kind (`support.signing.Ed25519SigningKey`), which knows its `key_id` itself.
            retries: How patient every call is.
            timeout_s: For one attempt, from waiting for a connection to the last byte of the answer,
                whatever pace it comes at; longer by what the service was asked to wait (`wait_s`). Past
                it the attempt is as good as one that got no answer, or `Unreachable` where nothing was
                sent. Not within it: in the blocking client, looking up the name, and every further
                address of the name, which gets what is left anew; in the asynchronous one, grabs and
                their look-ups have it once for connecting and once for the answer (0.25 s late at
                most), and their wait for one of the connections is not bounded.
            connections_max_count: At most so many at a time.
            tls: Where the system's certificate authorities do not suffice.

        Raises:
            ValueError: `base_url` is no address.
            CredentialsError: the secret is no base64 or too short.
        """
        self.retries = retries
        self._address = split_url(base_url)
        self._origin = f"{self._address.scheme}://{self._address.netloc}"
        self._key = signing_key(key_id, secret) if isinstance(secret, str) else secret
        self._timeout_s = timeout_s
        self._connections_max_count = connections_max_count
        self._tls = tls
        self._open()

    @classmethod
    def of(cls, base_url: str, credentials: Credentials, *, retries: Retries = PATIENT) -> Self:
        """Make a client from what `read_credentials` read."""
        return cls(base_url, credentials.key_id, credentials.secret, retries=retries)

    @abstractmethod
    def _open(self) -> None:
        """Make the connections' pool."""

    def _prepared(self, request: Request) -> dict[str, Any]:
        return {
            "method": request.method.decode(),
            "url": self._origin + request.target.decode(),
            "headers": request.signed_headers(self._key),
            "content": request.body,
        }

    def _unreachable(self, why: Exception) -> Unreachable:
        return Unreachable(f"{self._origin} cannot be reached: {why}")


class PartnerClient(_Signed):
    """Calls of one partner, signed, blocking. A context, or close it. May be used by several threads.

    Calls return typed values. `grab` returns every answer as a value (`Answer.outcome`); the others
    raise `ApiRefused` for a refusal, `AnswerLost` where it is not known whether something was done,
    and `Unreachable` where nobody listens, each only after `retries`.
    """

    grab = _blocking(retrying.grab)
    look_up = _blocking(calls.look_up)
    voucher = _blocking(calls.voucher)
    drop = _blocking(calls.drop)
    event_page = _blocking(calls.event_page)
    subscribe = _blocking(calls.subscribe)
    subscriptions = _blocking(calls.subscriptions)
    subscription = _blocking(calls.subscription)
    unsubscribe = _blocking(calls.unsubscribe)
    rotate_secret = _blocking(calls.rotate_secret)
    test = _blocking(calls.test)
    redeliver = _blocking(calls.redeliver)
    deliveries = _blocking(calls.deliveries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def events(
        self, after: str = BEGINNING, *, follow: bool = True, wait_s: float = calls.FEED_WAIT_MAX_S
    ) -> Iterator[tuple[str, Event]]:
        """Every event after a cursor, in order, each with the cursor to keep once it is handled.

        Args:
            after: Where an earlier reading stopped; nothing starts at the beginning.
            follow: Go on for ever, also while the service cannot be reached: asked again without end,
                with the pauses of `retries`. False ends when there is nothing more at the moment.
            wait_s: How long one question waits for new events, rounded up to whole seconds, at most
                `FEED_WAIT_MAX_S`. With 0 the feed is asked about every other second.

        Raises:
            ApiRefused: `events_gone`, or another refusal that asking again would not change (401, 403,
                404, 422). The cursor last handed out stays good.
            AnswerLost: no answer came, however often `retries` asked; never with `follow`.
            Unreachable: nobody listens; never with `follow`.
        """
        more = True
        while more:
            steps = feed_page(self.retries, after, follow=follow, wait_s=wait_s)
            after, page = drive(steps, self.send)
            yield from page.with_cursors(after)
            after, more = page.next, follow or bool(page.events)

    def send(self, request: Request) -> Answer:
        """Sign and send any request, once; `lost` (status 0) where no answer came.

        Raises:
            Unreachable: nothing was sent.
        """
        timeout_s = self._timeout_s + request.wait_s
        try:
            with within(timeout_s):
                return _answer(self._http.request(**self._prepared(request), timeout=timeout_s))
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx2.RequestError:
            return NO_ANSWER

    def _open(self) -> None:
        tls = self._tls or httpx2.create_ssl_context(trust_env=False)
        self._http = httpx2.Client(
            transport=InTime(tls, self._connections_max_count, KEEP_ALIVE_S), trust_env=False
        )


class AsyncPartnerClient(_Signed):
    """The same calls for one event loop. Grabs go through `GrabClient`, the fast one."""

    grab = _awaited(retrying.grab)
    look_up = _awaited(calls.look_up)
    voucher = _awaited(calls.voucher)
    drop = _awaited(calls.drop)
    event_page = _awaited(calls.event_page)
    subscribe = _awaited(calls.subscribe)
    subscriptions = _awaited(calls.subscriptions)
    subscription = _awaited(calls.subscription)
    unsubscribe = _awaited(calls.unsubscribe)
    rotate_secret = _awaited(calls.rotate_secret)
    test = _awaited(calls.test)
    redeliver = _awaited(calls.redeliver)
    deliveries = _awaited(calls.deliveries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        self._grabs.close()
        await self._http.aclose()

    async def events(
        self, after: str = BEGINNING, *, follow: bool = True, wait_s: float = calls.FEED_WAIT_MAX_S
    ) -> AsyncIterator[tuple[str, Event]]:
        """Every event after a cursor; see `PartnerClient.events`. Cancelling its reader ends it at once."""
        more = True
        while more:
            steps = feed_page(self.retries, after, follow=follow, wait_s=wait_s)
            after, page = await drive_async(steps, self.send)
            for found in page.with_cursors(after):
                yield found
            after, more = page.next, follow or bool(page.events)

    async def send(self, request: Request) -> Answer:
        """Sign and send any request, once; see `PartnerClient.send`."""
        if request.of_grab:
            return await self._grabs.exchange(request)
        timeout_s = self._timeout_s + request.wait_s
        try:
            return _answer(await request_in_time(self._http, timeout_s, **self._prepared(request)))
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx2.RequestError:
            return NO_ANSWER

    def _open(self) -> None:
        limits = httpx2.Limits(max_connections=self._connections_max_count, keepalive_expiry=KEEP_ALIVE_S)
        self._http = httpx2.AsyncClient(verify=self._tls or True, trust_env=False, limits=limits)
        self._grabs = GrabClient(
            self._origin,
            self._key,
            connections_max_count=self._connections_max_count,
            timeout_s=self._timeout_s,
            tls=self._tls,
        )


def _answer(response: httpx2.Response) -> Answer:
    told = response.headers.get("retry-after", "")
    return Answer(response.status_code, response.content, float(told) if told.isdecimal() else None)
