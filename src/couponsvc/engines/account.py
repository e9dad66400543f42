"""As whom an engine runs, and what that account can reach.

Postgres refuses to run as root, so root runs engines as `nobody`, which exists
everywhere. Permissions of directories that are not ours are never changed: what
`nobody` cannot reach is either put elsewhere or refused with a clear message.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NOBODY: Final = 65534
"""uid and gid of `nobody` on every Linux."""


@dataclass(frozen=True, slots=True)
class Account:
    """The uid and gid of engine processes; `switched` when they are not our own."""

    uid: int
    gid: int
    switched: bool

    @classmethod
    def current(cls) -> "Account":
        """`nobody` when we are root, else ourselves."""
        if os.geteuid() == 0:
            return cls(NOBODY, NOBODY, switched=True)
        return cls(os.geteuid(), os.getegid(), switched=False)

    def popen_options(self) -> dict[str, Any]:
        """Options of `subprocess.Popen` that run a command as this account, with no other groups."""
        if not self.switched:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give a file or directory that we made to this account."""
        if self.switched:
            os.chown(path, self.uid, self.gid)

    def obstacle(self, path: Path) -> Path | None:
        """First directory on the way to `path` (itself included) that this account cannot enter.

        By permission bits; for a file, the file itself must be readable and executable.
        """
        if not self.switched:
            return None
        resolved = path.resolve()
        for step in [*reversed(resolved.parents), resolved]:
            wanted = stat.S_IXOTH if step.is_dir() else stat.S_IXOTH | stat.S_IROTH
            if not self._has(step.stat(), wanted):
                return step
        return None

    def _has(self, status: os.stat_result, wanted: int) -> bool:
        if status.st_uid == self.uid:
            shift = 6
        elif status.st_gid == self.gid:
            shift = 3
        else:
            shift = 0
        return (status.st_mode >> shift) & wanted == wanted
