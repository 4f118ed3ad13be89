"""The audit store as text and as files."""
