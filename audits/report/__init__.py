"""The report: what an audit found, for people who are not engineers, in one page, and its machine-readable twin."""
