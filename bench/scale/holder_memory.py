"""What a voucher costs Redis for as long as its drop is there: its field among the holders."""

from typing import Final

from bench.closed_loop import run_wrk
from bench.scale.rounds import CONNECTIONS, WARM_UP_COUNT, closed_round, request_file
from bench.scale.service import Service
from bench.targets import Say, TargetResult

NAME: Final = "Redis memory per voucher held"
TARGET_BYTES: Final = 220
VOUCHERS: Final = 70_000
"""Just above a power of two: the hash has been resized a moment ago, and its table is emptiest."""
WINDOW_S: Final = 60.0
"""Never reached: the requests run out."""
DROP_ID: Final = "held"


async def measure(service: Service, say: Say, vouchers: int = VOUCHERS) -> TargetResult:
    """Issue vouchers in one drop, and compare Redis' dataset before and after.

    `used_memory_dataset` leaves out what does not grow with vouchers: clients' buffers, the buffer of
    the append-only file, scripts.
    """
    await service.define([(DROP_ID, vouchers + WARM_UP_COUNT, True)])
    await closed_round(service, [DROP_ID], "held-warm-up", count=WARM_UP_COUNT, window_s=WINDOW_S)
    before = await _dataset_bytes(service)
    with request_file(service, [DROP_ID], vouchers, "held") as path:
        await run_wrk(service.url, path, connections=CONNECTIONS, window_s=WINDOW_S)
    await service.settled()
    issued = await service.issued([DROP_ID]) - WARM_UP_COUNT
    held_bytes = (await _dataset_bytes(service) - before) / issued
    say(f"Redis holds a voucher in {held_bytes:.0f} bytes")
    detail = f"{issued:,} vouchers, person tokens of 18 and numbers of 32 characters"
    return TargetResult(NAME, held_bytes, TARGET_BYTES, at_least=False, unit="bytes", detail=detail)


async def _dataset_bytes(service: Service) -> int:
    return int((await service.redis.info("memory"))["used_memory_dataset"])
