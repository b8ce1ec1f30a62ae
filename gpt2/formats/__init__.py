"""Models from names and files: sizes, Hugging Face folders, llm.c's .bin, checkpoints of a run."""
