"""`python -m bench.newcomers`: how long a new connection waits to be taken while others flood the service.

At ten o'clock thousands connect while those before them ask already. A flood of grabs keeps the loop busy;
then many connections open at once, each asks for `/livez`, and every answer is timed from the moment of
connecting. Generator and service share the cores: compare two states of the code in turns.
"""

import argparse
import asyncio
import sys
from statistics import median
from time import perf_counter
from typing import Final

import uvloop

from bench.neighbours import FLOODER, Neighbours, flooding, opened
from bench.open_connection import Address, split_address
from bench.place import run_directory

REQUEST: Final = b"GET /livez HTTP/1.1\r\nhost: newcomers\r\nconnection: close\r\n\r\n"
FLOOD_REQUEST_COUNT: Final = 30_000
RAMP_S: Final = 2.0
"""The flood reads its requests and connects."""
PATIENCE_S: Final = 60.0


async def ask(address: Address) -> float:
    """Milliseconds from connecting to the whole answer."""
    began_s = perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(REQUEST)
        answer = await reader.read()
    finally:
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:80]
    return (perf_counter() - began_s) * 1e3


async def measure_round(neighbours: Neighbours, connection_count: int) -> list[float]:
    """Times of all newcomers, ascending."""
    address = split_address(neighbours.service.url)
    requests = neighbours.requests(FLOODER, FLOOD_REQUEST_COUNT)
    async with flooding(neighbours.service.url, requests, PATIENCE_S):
        await asyncio.sleep(RAMP_S)
        async with asyncio.timeout(PATIENCE_S):
            return sorted(await asyncio.gather(*(ask(address) for _ in range(connection_count))))


async def measure(rounds: int, connection_count: int) -> None:
    """Print every round, and the median of their medians and of their longest."""
    found: list[list[float]] = []
    with run_directory() as directory:
        async with opened(directory, workers=1, rate=(500, 100)) as neighbours:
            for _ in range(rounds):
                times = await measure_round(neighbours, connection_count)
                found.append(times)
                half_ms, all_ms = median(times), times[-1]
                print(
                    f"{connection_count} newcomers: half within {half_ms:.0f} ms, all within {all_ms:.0f} ms"
                )
    halves, longest = median(median(times) for times in found), median(times[-1] for times in found)
    print(f"medians of {rounds} rounds: half within {halves:.0f} ms, all within {longest:.0f} ms")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.newcomers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=500)
    options = parser.parse_args()
    uvloop.run(measure(options.rounds, options.connections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
