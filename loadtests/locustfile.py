"""Load tests with a verdict: `locust -f loadtests/locustfile.py --headless --host https://…`.

How to run it, alone and on several machines, is in loadtests/README.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # locust adds only this file's own folder

from loadtests.driver.lane import Lane
from loadtests.driver.wiring import Opening

__all__ = ["Lane", "Opening"]
