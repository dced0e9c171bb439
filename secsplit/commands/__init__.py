"""The commands of this floor, one file a group; each has `register(app)` and imports torch only when it runs."""
