"""The alternatives: the same job done in eight other ways, each as a competent engineer would.

One short file shows each service and says how it was tuned; `rows.py` and `queued_rows.py` tell the
harness how to start and check it. One of them is there twice, see `usual_service_tuned.py`.
"""

from typing import Final

from bench.contender import Contender
from bench.contenders.queued_rows import FastifyIoredis, GoRedigo, NginxLua
from bench.contenders.rows import (
    FastApiEcho,
    PostgresTickets,
    PostgresUpdate,
    RawAsgi,
    UsualService,
    UsualServiceTuned,
)

ALTERNATIVES: Final[tuple[Contender, ...]] = (
    RawAsgi(),
    FastApiEcho(),
    UsualService(),
    UsualServiceTuned(),
    PostgresUpdate(),
    PostgresTickets(),
    FastifyIoredis(),
    GoRedigo(),
    NginxLua(),
)
"""In the order of the table."""
