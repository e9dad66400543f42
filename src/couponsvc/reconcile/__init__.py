"""Beside the flow: checks the invariants, fences and rebuilds a lost Redis."""
