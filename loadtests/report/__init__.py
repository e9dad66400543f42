"""What people read of a verdict: one self-contained page, and a few lines for the terminal."""

from loadtests.report.page import render
from loadtests.report.text import summary

__all__ = ["render", "summary"]
