"""Contender 4: Postgres alone. A conditional UPDATE of the drop's row and the INSERTs, per request.

The hot row's lock is held until its commit is on disk, so commits of a drop happen one by one.

Tuned: everything in one statement, so that the lock is held for no round trip; 8 connections (4 and 16
were tried: with more the lock's queue costs more than it gains). See postgres_service.py.
"""

from fastapi import FastAPI

from bench.contenders.postgres_service import serve

CONNECTIONS_COUNT = 8
TAKE = """
WITH taken AS (
  UPDATE stock SET issued = issued + 1 WHERE drop_id = $1 AND issued < quantity RETURNING issued
), voucher AS (
  INSERT INTO vouchers SELECT $1, issued, $2, $3, $4, $5, $6, $7 FROM taken RETURNING seq
)
INSERT INTO outbox (type, drop_id, seq) SELECT 'voucher.issued', $1, seq FROM voucher RETURNING seq
"""


def create_app() -> FastAPI:
    """Made by uvicorn, so that the pool belongs to its loop."""
    return serve(TAKE, CONNECTIONS_COUNT)
