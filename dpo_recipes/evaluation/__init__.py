"""Did it work? Held-out numbers, answers, KL."""
