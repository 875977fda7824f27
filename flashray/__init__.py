"""flashray: restores archives of degraded images, spending on each only the compute that its damage asks for."""
