"""Frozen types and enums that every stage shares; no input or output in here.

Standard library and msgspec only (msgspec: the wire codecs), so that each
process can import them without pulling in a server or a driver.
"""
