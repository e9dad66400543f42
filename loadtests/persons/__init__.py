"""How persons behave. Pure: what was answered goes in, what to send next comes out."""
