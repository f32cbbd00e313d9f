"""The one exception that speaks to users."""


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
