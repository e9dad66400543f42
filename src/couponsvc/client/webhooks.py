"""Opening webhooks: nothing of a body is looked at before its signature was verified."""

import time
from collections.abc import Callable, Iterable, Mapping

from couponsvc.client.events import Event, MalformedEvent, read_event
from couponsvc.support.webhook_signature import TOLERANCE_S, BadWebhookSignature, secret_bytes, verify


class BadWebhook(ValueError):
    """Do not act upon it: the signature is not ours, it is too old, or it is no event. Answer 400."""


class WebhookVerifier:
    """Verifies what a webhook brought (Standard Webhooks 1.0) and reads its event.

    Whoever receives must also drop what it has already: an event may come more than once.

    Args:
        secrets: `whsec_…`, as shown when the subscription was made; while a secret is rotated,
            the old and the new one. An iterable is read once.
        tolerance_s: How far the sender's clock may lie from ours.
        clock: Unix time in seconds.

    Raises:
        couponsvc.support.webhook_signature.BadWebhookSecret: a secret has another form.
    """

    def __init__(
        self,
        secrets: Iterable[str],
        *,
        tolerance_s: int = TOLERANCE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = (secrets,) if isinstance(secrets, str) else tuple(secrets)
        self._tolerance_s = tolerance_s
        self._clock = clock
        if not self._secrets:
            raise ValueError("a verifier needs a secret")
        for secret in self._secrets:
            secret_bytes(secret)

    def open(self, headers: Mapping[str, str], body: bytes) -> Event:
        """The event of a webhook.

        Args:
            headers: Of the request; case does not matter.
            body: The very bytes that arrived.

        Raises:
            BadWebhook: it must not be acted upon.
        """
        try:
            verify(self._secrets, headers, body, now_s=int(self._clock()), tolerance_s=self._tolerance_s)
            return read_event(body)
        except (BadWebhookSignature, MalformedEvent) as error:
            raise BadWebhook(str(error)) from error
