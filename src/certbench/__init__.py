"""certbench: what is a robustness certificate worth in practice?

The package is usable without Snakemake and from a notebook. Importing it imports nothing heavy:
planning, statistics and reporting need no torch.
"""

__version__ = "0.1.0"
