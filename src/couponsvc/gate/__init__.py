"""Stage 3: one atomic decision in Redis: window, duplicates, limits, stock, and the grant."""
