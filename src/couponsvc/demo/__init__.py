"""`couponsvc demo`: a rush on a real program, and afterwards the four promises, checked.

`command` runs it; `stack` is the service as a subprocess; `crowd` is one client process; `person`
is how its people behave; `records` is what each process writes down; `promises` decides from the
records and Postgres' rows alone whether the promises were kept.
"""
