"""The plain client, for everything but rushes: definitions, operations, look-ups by operators."""

from types import TracebackType
from typing import Any, Final, Self

import httpx2

from couponsvc.client.answers import Answer, ApiRefused, Refusal
from couponsvc.client.connection import Unreachable

TIMEOUT_S: Final = 10.0
"""An operator's call is one short transaction; a minute-long export is not made with this."""


class ApiClient:
    """Calls with a bearer token. One connection pool; close it, or use it as a context.

    Raises:
        Unreachable: from every call, if nobody listens or the answer does not come.
    """

    def __init__(self, base_url: str, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{base_url} is no address: {error}") from error
        self._base_url = base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """Read one JSON object.

        Raises:
            ApiRefused: any status but 2xx.
        """
        return self._call("GET", path, None)[1]

    def find(self, path: str) -> dict[str, Any] | None:
        """Read one JSON object; None for 404.

        Raises:
            ApiRefused: any other status but 2xx.
        """
        try:
            return self.get(path)
        except ApiRefused as refused:
            if refused.status == httpx2.codes.NOT_FOUND:
                return None
            raise

    def put(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Create or update; `(status, object)`.

        Raises:
            ApiRefused: any status but 2xx.
        """
        return self._call("PUT", path, body)

    def post(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Do; `(status, object)`.

        Raises:
            ApiRefused: any status but 2xx.
        """
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        try:
            response = self._http.request(method, path, json=body)
        except (httpx2.TransportError, httpx2.UnsupportedProtocol) as error:
            raise Unreachable(
                f"{self._base_url} cannot be reached: {error or type(error).__name__}"
            ) from error
        if not response.is_success:
            refusal = Answer(response.status_code, response.content).refusal
            raise ApiRefused(response.status_code, refusal)
        try:
            found = response.json()
        except ValueError as error:
            raise ApiRefused(response.status_code, Refusal(title="the answer is not JSON")) from error
        if not isinstance(found, dict):
            raise ApiRefused(response.status_code, Refusal(title="the answer is not an object"))
        return response.status_code, found
