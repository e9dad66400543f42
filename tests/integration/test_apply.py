"""`couponsvc apply` over real HTTP: what it tells, that twice is once, and its exit codes."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.client import ApiClient, ApiRefused, Unreachable
from couponsvc.processes.api import run_api
from couponsvc.programs.apply import Applied, apply_program, summary
from couponsvc.programs.program_file import ProgramFile, parse_program_file
from couponsvc.settings import Settings
from tests.integration.house import House

EXAMPLES = Path(__file__).parents[2] / "examples"
QINGDAO = EXAMPLES / "qingdao-2022.yaml"
READY_S = 20.0


class Api(NamedTuple):
    """A served API and an operator's token."""

    url: str
    token: str


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < deadline, "the API does not listen"
            time.sleep(0.02)
        else:
            return


@pytest.fixture
async def api(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> AsyncIterator[Api]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = settings.model_copy(update={"port": port})
    stop = asyncio.Event()
    async with House.open(settings, pool, redis) as house:
        serving = asyncio.create_task(run_api(settings, stop))
        await asyncio.to_thread(wait_until_listening, port)
        yield Api(f"http://127.0.0.1:{port}", house.tokens["operator"])
    stop.set()
    await serving


async def apply(api: Api, file: ProgramFile) -> list[Applied]:
    def run() -> list[Applied]:
        told: list[Applied] = []
        with ApiClient(api.url, api.token) as client:
            done = apply_program(client, file, told.append)
        assert told == done
        return done

    return await asyncio.to_thread(run)


async def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `couponsvc apply …`: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "couponsvc",
        "apply",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def qingdao(*changes: tuple[str, str]) -> ProgramFile:
    text = QINGDAO.read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_program_file(text, "changed.yaml")


async def test_everything_is_created_and_the_second_time_nothing_changes(api: Api) -> None:
    first = await apply(api, qingdao())
    assert [applied.change for applied in first] == ["created"] * 10
    assert summary(first) == "10 created"
    again = await apply(api, qingdao())
    assert [applied.change for applied in again] == ["unchanged"] * 10
    assert summary(again) == "nothing changed"
    assert [applied.what for applied in again][:2] == ["program qingdao-2022", "template dining-20"]


async def test_every_example_can_be_applied(api: Api) -> None:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        done = await apply(api, parse_program_file(path.read_text("utf-8"), path.name))
        assert {applied.change for applied in done} == {"created"}, path.name


async def test_a_change_names_item_field_old_and_new(api: Api) -> None:
    await apply(api, qingdao())
    done = await apply(
        api,
        qingdao(
            ("name: 2022 青岛餐饮消费券", "name: 青岛餐饮"),
            ("quantity: 2950", "quantity: 3000"),
            ("opens_at: 2027-06-05T10:00:00+08:00", "opens_at: 2027-06-05T09:00:00+08:00"),
        ),
    )
    told = {applied.what: str(applied) for applied in done if applied.change == "updated"}
    assert "name: 2022 青岛餐饮消费券 → 青岛餐饮" in told["program qingdao-2022"]
    assert told["drop qingdao-2022-wed-dining-100"].endswith("(quantity: 2950 → 3000)")
    assert "opens_at: 2027-06-05T02:00:00" in told["drop qingdao-2022-sat-dining-20"]
    assert "quantity: 2950 → 3000; opens_at: " in told["drop qingdao-2022-sat-dining-100"]
    assert summary(done) == "5 updated, 5 unchanged"


async def test_a_drop_that_takes_over_new_terms_says_so(api: Api) -> None:
    await apply(api, qingdao())
    done = await apply(
        api,
        qingdao(
            ("face_value_fen: 20000, min_spend_fen: 80000", "face_value_fen: 20000, min_spend_fen: 90000")
        ),
    )
    told = [str(applied) for applied in done if applied.change == "updated"]
    assert len(told) == 3
    assert all("min_spend_fen: 80000 → 90000" in line for line in told)


async def test_a_partner_that_was_not_admitted_is_named(api: Api) -> None:
    with pytest.raises(ApiRefused, match="unknown_partner"):
        await apply(api, qingdao(("[bank-a]", "[bank-z]")))


async def test_nobody_listening_is_unreachable() -> None:
    file = qingdao()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unreachable, match="cannot be reached"):
            await apply(Api(url, "token"), file)


@pytest.mark.slow
async def test_the_command_tells_what_changed_and_then_that_nothing_did(api: Api) -> None:
    code, out, err = await command(str(QINGDAO), "--url", api.url, COUPONSVC_TOKEN=api.token)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "10 created"
    assert "created    drop qingdao-2022-wed-dining-20" in out.splitlines()
    code, out, _ = await command(str(QINGDAO), "--url", api.url, "--token", api.token)
    assert (code, out.splitlines()[-1]) == (0, "nothing changed")


@pytest.mark.slow
async def test_the_command_ends_with_the_contracts_exit_codes(api: Api, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("program: 7\n", "utf-8")
    refused = tmp_path / "refused.yaml"
    refused.write_text(QINGDAO.read_text("utf-8").replace("[bank-a]", "[bank-z]"), "utf-8")
    usage = await command(str(bad), "--url", api.url, "--token", api.token)
    not_so = await command(str(refused), "--url", api.url, "--token", api.token)
    unreachable = await command(str(QINGDAO), "--data-dir", str(tmp_path))
    assert [code for code, _, _ in (usage, not_so, unreachable)] == [2, 1, 3]
    for _, _, err in (usage, not_so, unreachable):
        assert err.startswith("couponsvc: ")
        assert err.count("\n") == 1
    assert f"{bad}:1: " in usage[2]
    assert "bank-z" in not_so[2]
    assert api.token not in usage[2] + not_so[2] + unreachable[2]
