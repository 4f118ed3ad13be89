"""Which push of the hidden state changes the tool, and what becomes of the call."""
