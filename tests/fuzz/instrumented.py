"""One target under atheris: `python -m tests.fuzz.instrumented TARGET DIRECTORY [libFuzzer options]`."""

import sys

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not everywhere

with atheris.instrument_imports(include=["couponsvc"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS


if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
