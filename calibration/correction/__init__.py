"""What to do with a flagged call: which correction fixes more than it breaks."""
