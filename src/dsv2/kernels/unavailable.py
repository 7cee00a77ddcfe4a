"""The error of kernels that cannot run on this machine."""


class Unavailable(RuntimeError):
    """The kernels cannot be compiled or run here; the message says why."""
