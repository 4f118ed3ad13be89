"""The page that shows what a profile is worth."""
