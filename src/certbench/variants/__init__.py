"""Variants of a dataset: ordered steps applied after the view."""
