"""Embedded Redis and Postgres for a machine that has neither configured.

Our own launcher: the packages that bring the binaries are never imported, because
their own start code makes accounts and opens permissions of directories that are
not theirs. One engine is one child process of ours; it dies with us.
"""
