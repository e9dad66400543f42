"""Contender 5: Postgres alone. One row per unit, taken with `FOR UPDATE SKIP LOCKED`, per request.

No lock is waited for, so commits of a drop share a flush; every unit is a row, made beforehand.

Tuned: everything in one statement; the ticket is deleted by its place (`ctid`; by its number was slower,
and so was turning a ticket into the voucher by UPDATE with an index of the free ones); 16 connections
(8 and 32 gained nothing). See postgres_service.py.
"""

from fastapi import FastAPI

from bench.contenders.postgres_service import serve

CONNECTIONS_COUNT = 16
TAKE = """
WITH taken AS (
  DELETE FROM tickets WHERE ctid = (
    SELECT ctid FROM tickets WHERE drop_id = $1 ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED
  ) RETURNING seq
), voucher AS (
  INSERT INTO vouchers SELECT $1, seq, $2, $3, $4, $5, $6, $7 FROM taken RETURNING seq
)
INSERT INTO outbox (type, drop_id, seq) SELECT 'voucher.issued', $1, seq FROM voucher RETURNING seq
"""


def create_app() -> FastAPI:
    """Made by uvicorn, so that the pool belongs to its loop."""
    return serve(TAKE, CONNECTIONS_COUNT)
