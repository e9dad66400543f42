"""couponsvc: limited vouchers for very many people at once, with proof.

The folders of this package sort in the order a grab flows through them; see
docs/architecture.md for one picture of it and for who is authoritative.
"""

__version__ = "0.1.0"
