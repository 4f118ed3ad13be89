"""The thresholds that keep a risk target, and the check of what they promise."""
