"""What can go wrong with an engine, in one line that says what to do."""


class EngineError(Exception):
    """An engine cannot be found, placed or started; the message says what to do."""
