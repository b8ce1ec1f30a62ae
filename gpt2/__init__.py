"""GPT-2 in small modules: each holds the final version of one thing that a notebook builds by hand."""
