"""The processes of the service, one file each, and `up`, which runs them all on one machine."""
