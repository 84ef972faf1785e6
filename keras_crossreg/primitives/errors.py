"""What primitives of every backend raise."""


class NotDifferentiableTwice(ValueError):
    """An operation of a loss has no second derivative on this backend."""
