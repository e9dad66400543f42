"""The rules; importing them registers them (see `loadtests.oracle.rulebook`)."""

from loadtests.oracle.rules import answers, counts, order, windows

__all__ = ["answers", "counts", "order", "windows"]
