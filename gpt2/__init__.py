"""GPT-2: the final version of every piece that the notebooks build by hand."""
