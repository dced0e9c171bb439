"""Attacks: what an adversary can infer from a View, or by taking a party's place. They never see the truth."""
