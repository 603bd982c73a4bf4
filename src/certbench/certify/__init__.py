"""Certified defences: statistics, noise, votes, certifier plug-ins, the audit."""
