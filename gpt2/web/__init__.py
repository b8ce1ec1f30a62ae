"""Pages in a browser: a model to look inside, and runs to watch."""
