"""Load tests with a verdict: locust scenarios, a record of every answer, and an oracle that judges it.

What is imported here and by tests must not import locust or gevent: both patch the standard library.
"""
