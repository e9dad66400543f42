"""Stage 2: concurrent grabs become one decision; each grab awaits its own answer."""
