"""What primitives of every backend raise."""


class NotDifferentiableTwice(ValueError):
    """An operation of a loss has no second derivative on this backend."""


class NoRuntimeNoise(ValueError):
    """A backend writes no files that draw random numbers where they run."""

    def __init__(self, backend: str) -> None:
        super().__init__(
            f"What {backend} writes holds the noise as constants. Draw it "
            'ahead: `kcr.averaged(model, num_samples, noise="fixed").export('
            f"...)`. Received: noise=random with the backend {backend}"
        )
