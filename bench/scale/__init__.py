"""Does it stay fast where there is much of everything: vouchers, drops, requests, holders?

`python -m bench.scale [--only NAME …]` measures these targets alone; `python -m bench` includes them.
"""

from bench.scale.measurements import NAMES, measure_targets, run

__all__ = ["NAMES", "measure_targets", "run"]
