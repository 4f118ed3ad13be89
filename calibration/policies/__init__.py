"""What a policy says of every tool, and what it would have changed."""
