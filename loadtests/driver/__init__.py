"""What drives the persons: locust's users, the schedule they serve, and what they write down.

Everything in here runs under gevent, in a locust process; tests start it in a subprocess.
"""
