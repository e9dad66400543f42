"""Stage 5: what partners must hear of, delivered at least once."""
