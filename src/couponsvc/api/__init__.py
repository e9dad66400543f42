"""Stage 1: HTTP in, HTTP out."""
