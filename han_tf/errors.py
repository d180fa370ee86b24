"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Something about the input is wrong; the message is one line.

    It names the file or value, what was found and what was expected. Command lines print it
    without a traceback and exit with status 1 (see :mod:`han_tf.cli`).
    """
