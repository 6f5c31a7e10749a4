"""Errors that a person can cause and mend."""


class InputError(ValueError):
    """Something given to the engine cannot be used.

    The message is one line that says what was wrong, where, and what to do; callers print it as it is.
    """
