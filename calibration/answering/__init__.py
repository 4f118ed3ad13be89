"""Call, answer or ask: the decision at the position where a call could start."""
