"""Stage 4: grants become vouchers in Postgres, with their outbox rows, then confirmations."""
