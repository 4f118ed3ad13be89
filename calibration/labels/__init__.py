"""What a call is worth: the checker, and calls with what was read of them."""
