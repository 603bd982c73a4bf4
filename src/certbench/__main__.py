"""``python -m certbench``."""

from certbench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
