"""Embedded Redis and Postgres for a machine that has neither configured."""
