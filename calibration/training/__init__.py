"""Training of the bundled reference agent: catalogue, tokenizer, packed examples, loop."""
