"""What a model decides on labelled prompts, read as fast as the model allows."""
