"""The training of theta and rho, on any backend."""
