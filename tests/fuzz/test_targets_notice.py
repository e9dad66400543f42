"""A target that nothing fails proves nothing: with a rule of its reader switched off, each finds an input."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import http_sf
import httptools
import pytest

from couponsvc.api import express_head, grab_body
from couponsvc.support import guarded_url
from couponsvc.support.signing import HmacKey, digest, fields, inputs
from tests.fuzz import targets
from tests.fuzz.at_random import run_for

pytestmark = pytest.mark.slow

PATIENCE_S = 10.0
CONTRADICTIONS = (AssertionError, http_sf.StructuredFieldError, httptools.HttpParserError)
"""Of a target itself, and of the second readers."""
VERIFY = sys.modules["couponsvc.support.signing.verify"]  # the package's own `verify` is a function


def nothing(*_: Any, **__: Any) -> None:
    return None


def always(*_: Any, **__: Any) -> bool:
    return True


PLANTED: dict[str, tuple[str, Any, str, Any]] = {
    "a member twice": ("grab_body", grab_body, "_refuse_duplicates", nothing),
    "any person": ("grab_body", grab_body, "_PERSON_TOKEN", always),
    "framing fields": ("express_head", express_head, "_FRAMING", frozenset()),
    "a length in any spelling": ("express_head", express_head, "_is_usual", lambda f: b"content-length" in f),
    "body not compared": ("signature", VERIFY, "digest_refusal", nothing),
    "any signature": ("signature", HmacKey, "verifies", always),
    "digest not compared": ("digest", digest, "content_digest", lambda _: b"sha-256=:AA==:"),
    "commas left out": ("signature_fields", fields, "_COMMA", re.compile(rb"[ \t,]*+")),
    "base64 in any spelling": ("signature_fields", fields, "decode_base64", lambda text: text),
    "hosts of digits": ("webhook_url", guarded_url, "_LOOKS_NUMERIC", re.compile(r"[^\s\S]")),
    "fragments": ("query", targets, "refusal_of_head", nothing),
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """What readers remember was read by other rules."""
    forget()
    yield
    forget()


def forget() -> None:
    for memory in (express_head._lower, express_head._targets, inputs._remembered, inputs._coverages):  # noqa: SLF001
        memory.clear()
    guarded_url._split.cache_clear()  # noqa: SLF001


@pytest.mark.parametrize("name", PLANTED)
def test_a_rule_switched_off_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, module, attribute, replacement = PLANTED[name]
    monkeypatch.setattr(module, attribute, replacement)
    with pytest.raises(CONTRADICTIONS):
        run_for(target, PATIENCE_S)
