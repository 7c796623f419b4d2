"""Learning one domain: the training loop, and everything that ends a step."""
