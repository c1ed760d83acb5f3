"""Models: where weights come from, and the content-addressed store that keeps them."""
