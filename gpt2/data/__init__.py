"""From text to batches: tokenizer, sources of text, token shards, and the loader that orders them."""
