"""The master of a run: prepares it, gives every worker its orders, gathers records, has them judged.

The same code conducts workers on other machines, the processes that `--processes` starts, and the
only process of a small run, where locust delivers messages to itself.
"""

import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
import locust
import msgspec
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import STATE_MISSING, MasterRunner

from couponsvc.client import ApiRefused, Unreachable
from loadtests.clock import RunClock
from loadtests.driver.crew import Account, Orders
from loadtests.driver.options import Options
from loadtests.driver.shipping import Piece, Receiver
from loadtests.driver.stage import NotReady, Stage, define
from loadtests.plan import Plan, new_run
from loadtests.records import SAMPLES_FILE, RunFacts, write_facts

ORDERS: Final = "load_orders"
"""Master to worker: what to play."""
PIECE: Final = "load_piece"
"""Worker to master: records."""
WRITTEN: Final = "load_written"
"""Master to worker: a piece has been written."""
ACCOUNT: Final = "load_account"
"""Worker to master: everybody has gone home and all records were sent."""
GATHER_PATIENCE_S: Final = 60.0
"""From the end of the run until every worker must have handed in its records."""
EXIT_UNREACHABLE: Final = 3
EXIT_INTERRUPTED: Final = 130

_log: Final = logging.getLogger("locust.loadtests")


class Conductor:
    """One run of a master or of a single process.

    Args:
        environment: Locust's.
        options: What was asked for.
    """

    def __init__(self, environment: Environment, options: Options) -> None:
        self._environment: Final = environment
        self.options: Final = options
        self._clock: Final = RunClock()
        self._accounts: Final[dict[str, Account]] = {}
        self._orders: Final[dict[str, str | None]] = {}
        """Workers of this run: its name in records -> its id in locust."""
        self._beside: list[Any] = []
        self._stage: Stage | None = None
        self._directory: Path | None = None
        self._receiver: Receiver | None = None
        self._facts: RunFacts | None = None
        self._failed = False
        self._over = False

    def check_over(self) -> bool:
        """Whether nothing is left to be waited for; remembered, since an interruption is no end."""
        self._over = self._over or self._nothing_left()
        return self._over

    def _nothing_left(self) -> bool:
        if self._failed or not self._orders:
            return self._failed
        if all(
            worker in self._accounts or self._lost(client_id) for worker, client_id in self._orders.items()
        ):
            return True
        overdue_s = self._clock.now_s() - self.options.scenario.lasts_s
        return overdue_s > GATHER_PATIENCE_S

    @property
    def workers_count(self) -> int:
        """Workers that stand ready; one where locust runs in a single process."""
        runner = self._environment.runner
        return max(1, len(runner.clients.ready)) if isinstance(runner, MasterRunner) else 1

    def _lost(self, client_id: str | None) -> bool:
        """Whether a worker is gone: killed, or out of reach for longer than locust waits."""
        runner = self._environment.runner
        if client_id is None or not isinstance(runner, MasterRunner):
            return False
        node = runner.clients.get(client_id)
        return node is None or node.state == STATE_MISSING

    # --- the run ------------------------------------------------------------------------------
    def begin(self) -> None:
        """Prepare the run and give the orders; on failure the run ends at once with exit code 3."""
        try:
            self._begin()
        except (ApiRefused, Unreachable, NotReady) as error:
            _log.error("the run cannot begin: %s", error)
            self._fail()
        except Exception:
            self._fail()  # locust logs it and would go on
            raise

    def _fail(self) -> None:
        self._failed = True
        self._environment.process_exit_code = EXIT_UNREACHABLE

    def _begin(self) -> None:
        host = (self._environment.host or "").rstrip("/")
        if not host:
            raise NotReady("say where the deployment is: --host https://…")
        options, run = self.options, new_run()
        self._failed = self._over = False
        self._orders.clear()
        self._accounts.clear()
        plan = options.plan or define(options, host, run, self.workers_count, self._clock)
        self._clock.aim(plan.opens_ms, 0.0)
        self._stage = Stage(options, host, plan, self._clock)
        drops = self._stage.definitions() if options.plan else self._stage.fresh_definitions()
        self._directory = directory = options.make_run_dir()
        self._receiver = Receiver(directory)
        self._facts = RunFacts(
            scenario=options.scenario_name,
            host=host,
            started_ms=self._clock.wall_ms(),
            ended_ms=0.0,
            persons=options.persons_count,
            drops=drops,
        )
        self._give_orders(run, plan, host)
        self._beside = [
            gevent.spawn(self._stage.watch, directory / SAMPLES_FILE),
            gevent.spawn(self._stage.operate, options.scenario, options.persons_count),
        ]
        _say(
            f"{options.scenario.scenario}: {options.persons_count:,} persons for "
            f"{sum(drop.quantity for drop in drops):,} units of {len(drops)} drops, played by "
            f"{len(self._orders)} workers; opening in {-self._clock.now_s():.1f} s; records in {directory}"
        )

    def _give_orders(self, run: str, plan: Plan, host: str) -> None:
        runner = self._environment.runner
        assert runner is not None  # noqa: S101
        client_ids = (
            [node.id for node in runner.clients.ready] if isinstance(runner, MasterRunner) else [None]
        )
        for place, client_id in enumerate(client_ids):
            orders = Orders(
                run=run,
                plan=plan,
                scenario=self.options.scenario,
                seed=self.options.seed,
                place=place,
                workers_count=len(client_ids),
                host=host,
            )
            self._orders[orders.worker] = client_id
            runner.send_message(ORDERS, msgspec.msgpack.encode(orders), client_id)

    # --- messages from workers ----------------------------------------------------------------
    def take_piece(self, message: Message) -> None:
        """Write a piece of a worker's records and say so."""
        piece = Piece(*message.data)
        if self._receiver is not None and self._environment.runner is not None:
            self._receiver.take(piece)
            client_id = message.node_id if isinstance(self._environment.runner, MasterRunner) else None
            self._environment.runner.send_message(WRITTEN, [piece.worker, piece.offset], client_id)

    def take_account(self, message: Message) -> None:
        """A worker is done."""
        account = msgspec.msgpack.decode(message.data, type=Account)
        self._accounts[account.worker] = account

    # --- the end ------------------------------------------------------------------------------
    def end(self) -> None:
        """Close the books and have the run judged; its verdict becomes locust's exit code.

        Called when a run was stopped from locust's web page, and when locust ends; once is enough.
        """
        for greenlet in self._beside:
            greenlet.kill()
        if self._stage is None or self._receiver is None or self._facts is None or self._directory is None:
            return
        self._receiver.close()
        self._stage.close()
        facts = self._closed_facts(self._facts, self._stage)
        write_facts(self._directory, facts)
        for name, account in sorted(self._accounts.items()):
            _say(f"  {name}: {account.tell()}")
        self._facts = None  # a second call finds nothing to do
        if not facts.complete:
            _log.error(
                "records are incomplete in %s; nothing that rests on absence can be judged", self._directory
            )
        if not self._over:
            self._environment.process_exit_code = EXIT_INTERRUPTED
        if not (self.options.judged and self._over):
            _say(f"not judged; later: python -m loadtests judge {self._directory}")
            return
        code = self._judge(self._directory)
        self._environment.process_exit_code = code if facts.complete or code else EXIT_UNREACHABLE

    def _closed_facts(self, facts: RunFacts, stage: Stage) -> RunFacts:
        accounts, scenario = self._accounts, self.options.scenario
        return msgspec.structs.replace(
            facts,
            ended_ms=self._clock.wall_ms(),
            operations=stage.operations,
            clocks={name: account.clock for name, account in accounts.items()},
            complete=len(accounts) == len(self._orders)
            and all(self._arrived(one) for one in accounts.values()),
            options={
                "says": scenario.says,
                "loop": scenario.loop,
                "arrival": f"{scenario.arrival.curve}, within {scenario.arrival.within_s:g} s",
                "seed": str(self.options.seed),
                "workers": str(len(self._orders)),
                "lanes per worker": str(scenario.lanes),
                **{name: account.tell() for name, account in sorted(accounts.items())},
            },
            versions={
                "python": platform.python_version(),
                "locust": locust.__version__,
                "couponsvc": version("couponsvc"),
            },
        )

    def _arrived(self, account: Account) -> bool:
        assert self._receiver is not None  # noqa: S101
        path = self._receiver.path(account.worker)
        return path.exists() and path.stat().st_size == account.bytes_count

    def _judge(self, directory: Path) -> int:
        """In a process of its own: the oracle wants an event loop that nobody has patched."""
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, **self.options.access.environment(), "PYTHONPATH": str(root)}
        judging = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "loadtests", "judge", str(directory)], env=environment, check=False
        )
        return judging.returncode


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - what the operator watches, whatever the log level
