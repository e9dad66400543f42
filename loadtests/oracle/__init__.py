"""The oracle: reads what a run recorded and what the deployment says, and gives a verdict."""

from loadtests.oracle.deployment import Deployment, Refused
from loadtests.oracle.judging import Patience, judge
from loadtests.oracle.run import RunRecords
from loadtests.oracle.verdict import Promise, Standing, Verdict

__all__ = [
    "Deployment",
    "Patience",
    "Promise",
    "Refused",
    "RunRecords",
    "Standing",
    "Verdict",
    "judge",
]
