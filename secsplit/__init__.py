"""secsplit: split learning over encrypted links, and what its messages give away."""

__version__ = "0.1.0"
