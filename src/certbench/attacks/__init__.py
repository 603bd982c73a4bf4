"""Attacks, written here: what they climb, what judges them, what they cost."""
