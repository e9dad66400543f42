"""Requests in a file, for a generator that is another process: length in eight digits, then bytes.

`wrk`'s Lua script and `bench.open_loop` read the same form.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

LENGTH_DIGITS: Final = 8


def write_requests(path: Path, requests: Iterable[bytes]) -> int:
    """Write whole raw HTTP/1.1 requests; how many there were."""
    count = 0
    with path.open("wb", buffering=1 << 20) as file:
        for request in requests:
            file.write(b"%8d" % len(request))
            file.write(request)
            count += 1
    return count


def read_requests(path: Path) -> Iterator[bytes]:
    """Read them back, in order.

    Raises:
        ValueError: the file ends within a request.
    """
    with path.open("rb", buffering=1 << 20) as file:
        while length := file.read(LENGTH_DIGITS):
            request = file.read(int(length))
            if len(request) != int(length):
                raise ValueError(f"{path} ends within a request")
            yield request
