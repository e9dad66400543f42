"""The subcommands of `python -m loadtests`, one module each.

A module has `add_options(parser)` and `run(given) -> int`, the exit code (0 done or kept, 1 not so,
2 usage, 3 cannot reach what it needs); its docstring's first line is the help text.
"""
