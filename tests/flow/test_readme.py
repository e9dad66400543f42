"""The signed request of README.md, run as it stands there with bash, curl and openssl."""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from couponsvc.client import Voucher
from tests.flow.conftest import Service

README = Path(__file__).parent.parent.parent / "README.md"
EXAMPLE = README.parent / "examples" / "first-steps.yaml"


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None, reason="curl or openssl is not installed"
)
async def test_the_signed_request_of_the_readme_gets_its_voucher_and_gets_it_again(
    shared_service: Service, tmp_path: Path
) -> None:
    service = shared_service  # with the partner that the example names
    credentials = tmp_path / "credentials.json"
    credentials.write_text(json.dumps(service.credentials))
    await run(
        [sys.executable, "-m", "couponsvc", "apply", str(EXAMPLE), "--url", service.url],
        token=service.credentials["operator"]["token"],
    )
    await wait_for_the_drop(service)
    (script,) = re.findall(r"```bash\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    script = script.replace("var/credentials.json", str(credentials)).replace(
        "http://127.0.0.1:8000", service.url
    )
    first = await run(["bash", "-eu", "-o", "pipefail", "-c", script])
    voucher = msgspec.json.decode(first, type=Voucher)
    assert (voucher.drop_id, voucher.out_request_no) == ("first-steps-dining-20", "readme-1")
    assert await run(["bash", "-eu", "-o", "pipefail", "-c", script]) == first


async def wait_for_the_drop(service: Service) -> None:
    async with asyncio.timeout(10):
        while (await service.operate("GET", "/v1/drops/first-steps-dining-20"))["state"] != "open":
            await asyncio.sleep(0.05)


async def run(command: list[str], token: str = "") -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "COUPONSVC_TOKEN": token},
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out
