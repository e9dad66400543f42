"""Typed binding of one Lua file: the header declares keys, arguments and returns; Python checks.

A `.lua` file opens with a block comment that has the sections KEYS, ARGV and RETURNS. A
binding names its keys and arguments in script order, and `LuaScript` compares both at
import, so that a changed script and a forgotten binding cannot meet in production.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_BLOCK = re.compile(r"--\[\[(.*?)\]\]", re.DOTALL)
_SECTION = re.compile(r"^(KEYS|ARGV|RETURNS)\b[^\n]*\n((?:[ \t]+[^\n]*\n?|\n)*)", re.MULTILINE)
_PARAMETER = re.compile(r"^ {2}(?:\d+|…|\.\.\.)\s+\S+\s+(\w+)", re.MULTILINE)
_CODE = re.compile(r"^ {2}(\w+)\s+(\w+)", re.MULTILINE)


class ScriptMismatch(ImportError):
    """A Lua header and its Python binding disagree; the message names both lists."""


@dataclass(frozen=True, slots=True)
class LuaHeader:
    """What a script's header declares."""

    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    returns: tuple[tuple[str, str], ...]
    """`(code, NAME)` rows of RETURNS; empty where the script returns something else."""


def parse_header(source: str) -> LuaHeader:
    """Read a script's header.

    Raises:
        ScriptMismatch: no block comment with KEYS, ARGV and RETURNS.
    """
    block = _BLOCK.search(source)
    sections = dict(_SECTION.findall(block.group(1))) if block else {}
    if set(sections) != {"KEYS", "ARGV", "RETURNS"}:
        message = f"a Lua header needs KEYS, ARGV and RETURNS; found {sorted(sections)}"
        raise ScriptMismatch(message)
    return LuaHeader(
        tuple(_PARAMETER.findall(sections["KEYS"])),
        tuple(_PARAMETER.findall(sections["ARGV"])),
        tuple(_CODE.findall(sections["RETURNS"])),
    )


class LuaScript:
    """A script with its declared parameters; `run` calls it by digest."""

    def __init__(self, package: str, name: str, *, keys: Sequence[str], arguments: Sequence[str]) -> None:
        """Load `<package>/lua/<name>.lua` and check its header.

        Raises:
            ScriptMismatch: header and binding disagree.
        """
        self.name: Final = name
        self.source: Final = files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        self.digest: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self.header: Final = parse_header(self.source)
        if self.header.keys != tuple(keys) or self.header.arguments != tuple(arguments):
            message = (
                f"{name}.lua declares keys {self.header.keys} and arguments "
                f"{self.header.arguments}; its binding says {tuple(keys)} and {tuple(arguments)}"
            )
            raise ScriptMismatch(message)

    async def run(self, redis: "Redis", keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:  # noqa: ANN401 - a reply's type is the script's; bindings narrow it
        """Run the script; load it first where the server lost it (restart, failover, flush).

        NOSCRIPT is answered before anything ran, so sending the source then is not a retry.

        Raises:
            redis.exceptions.RedisError: as the client raises it. After a lost connection or a
                timeout the script may have run.
        """
        try:
            return await redis.evalsha(self.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await redis.eval(self.source, len(keys), *keys, *arguments)
