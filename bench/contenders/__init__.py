"""The alternatives: the same job done in eight other ways, each as a competent engineer would.

One short file shows each service; `rows.py` tells the harness how to start and check it.
"""

from bench.contenders.rows import ALTERNATIVES

__all__ = ["ALTERNATIVES"]
