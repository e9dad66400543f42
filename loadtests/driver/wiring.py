"""Ties locust's events to the conductor (the master, or the only process) and to the crew (a worker)."""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
import msgspec
from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import LocalRunner, Runner, WorkerRunner

from loadtests.access import Access, AccessError, read_access
from loadtests.driver.conductor import ACCOUNT, ORDERS, PIECE, WRITTEN, Conductor
from loadtests.driver.crew import Crew, Orders
from loadtests.driver.lane import Lane
from loadtests.driver.options import Options, add_options
from loadtests.driver.shipping import SEND_EVERY_S, Shipper, ShippingFailed
from loadtests.plan import PlanError
from loadtests.scenario import ScenarioError

LANES_PER_SECOND: Final = 100.0
"""Per worker: above this, locust warns that spawning may go wrong."""
EXIT_USAGE: Final = 2

_log: Final = logging.getLogger("locust.loadtests")
logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line per look at a drop would hide the rest


class Opening(LoadTestShape):
    """As many lanes as the scenario says, until every worker has handed in its records."""

    conductor: Conductor | None = None
    _lanes: tuple[int, float] | None = None

    def tick(self) -> tuple[int, float] | None:
        """How many lanes there should be; None: the run is over."""
        conductor = type(self).conductor
        if conductor is None or conductor.check_over():
            return None
        if self._lanes is None:
            workers = conductor.workers_count
            self._lanes = (conductor.options.scenario.lanes * workers, LANES_PER_SECOND * workers)
        return self._lanes


class Part:
    """A worker's side: takes its orders, plays them, ships its records, accounts for itself.

    Args:
        runner: To speak to the master with.
        access: This machine's credentials.
    """

    def __init__(self, runner: Runner, access: Access) -> None:
        self._runner: Final = runner
        self._access: Final = access
        self._shipper: Shipper | None = None

    def take_orders(self, environment: Environment, msg: Message, **_: object) -> None:  # noqa: ARG002
        """Start to play; messages go on being read meanwhile."""
        gevent.spawn(self._play, msgspec.msgpack.decode(msg.data, type=Orders))

    def acknowledge(self, environment: Environment, msg: Message, **_: object) -> None:  # noqa: ARG002
        """A piece has been written."""
        if self._shipper is not None:
            self._shipper.acknowledge(msg.data[1])

    def _play(self, orders: Orders) -> None:
        with tempfile.TemporaryDirectory(prefix="load-records-") as directory:
            path = Path(directory) / f"{orders.worker}.bin"
            crew = Crew(orders, self._access, path)
            shipper = self._shipper = Shipper(
                orders.worker, path, lambda piece: self._runner.send_message(PIECE, list(piece))
            )
            Lane.crew = crew
            shipping = gevent.spawn(_ship, crew, shipper)
            try:
                account = crew.play()
                shipping.kill()
                shipper.finish()
            except ShippingFailed as error:
                _log.error("%s", error)
                return
            finally:
                Lane.crew = None
                shipping.kill()
            self._runner.send_message(ACCOUNT, msgspec.msgpack.encode(account))


def _ship(crew: Crew, shipper: Shipper) -> None:
    while True:
        gevent.sleep(SEND_EVERY_S)
        crew.flush()
        shipper.ship(whole_pieces=True)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator] # locust's hooks are not typed
def add_arguments(parser: LocustArgumentParser, **_: object) -> None:
    """Add our options to locust's."""
    add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator] # as above
def wire(environment: Environment, runner: Runner, **_: Any) -> None:  # noqa: ANN401 - locust's hook
    """Check what was asked for, and connect the parts that this process plays."""
    given = environment.parsed_options or argparse.Namespace()
    try:
        if isinstance(runner, WorkerRunner):
            _wire_worker(runner, _own_access(given))
            return
        conductor = Conductor(environment, Options.read(given))
    except (ScenarioError, PlanError, AccessError) as error:
        print(f"loadtests: {error}", file=sys.stderr)  # noqa: T201 - the command's error
        sys.exit(EXIT_USAGE)
    if given.quiet:
        logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)
    Opening.conductor = conductor
    _wire_conductor(environment, runner, conductor)
    if isinstance(runner, LocalRunner):
        _wire_worker(runner, conductor.options.access)


def _wire_worker(runner: Runner, access: Access) -> None:
    part = Part(runner, access)
    runner.register_message(ORDERS, part.take_orders)
    runner.register_message(WRITTEN, part.acknowledge)


def _wire_conductor(environment: Environment, runner: Runner, conductor: Conductor) -> None:
    def piece(msg: Message, **_: object) -> None:
        conductor.take_piece(msg)

    def account(msg: Message, **_: object) -> None:
        conductor.take_account(msg)

    def begin(**_: object) -> None:
        conductor.begin()

    def end(**_: object) -> None:
        conductor.end()

    runner.register_message(PIECE, piece)
    runner.register_message(ACCOUNT, account)
    environment.events.test_start.add_listener(begin)  # type: ignore[no-untyped-call] # as above
    if not (environment.parsed_options and environment.parsed_options.headless):
        environment.events.test_stop.add_listener(end)  # type: ignore[no-untyped-call] # as above
    environment.events.quitting.add_listener(end)  # type: ignore[no-untyped-call] # as above


def _own_access(given: argparse.Namespace) -> Access:
    return read_access(Path(given.credentials) if given.credentials else None, os.environ)
