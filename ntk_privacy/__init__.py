"""Training-data privacy with neural tangent kernels: what leaks, what hides it."""
