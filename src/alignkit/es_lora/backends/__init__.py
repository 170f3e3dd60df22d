"""What generates the completions of a population."""
