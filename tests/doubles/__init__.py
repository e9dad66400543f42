"""Stand-ins for the whole API, only to prove that the load tests' oracle catches a broken one."""
