"""What it costs to tell partners: effect on grabs, lag, rate, harm by bad receivers, a long past.

`python -m bench.events` measures all of it, about four minutes; everything is real: `couponsvc up` or
`couponsvc relay` processes, Postgres, receivers in processes of their own that verify every signature.
"""
