"""The same job, done by others and by us, side by side in one run: `python -m bench`."""
