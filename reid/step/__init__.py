"""One domain learned: the loop, and everything that ends a step."""
