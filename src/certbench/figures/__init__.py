"""Figures: pure functions of tables and rows."""
