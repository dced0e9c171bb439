"""Audits hold the truth: they run attacks over views, score them, check epsilon and channels, and write reports."""
