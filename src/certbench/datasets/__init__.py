"""Datasets: plug-ins, index, views, cards."""
