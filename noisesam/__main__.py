"""`python -m noisesam` is the command line."""

from __future__ import annotations

from noisesam.cli import main

if __name__ == "__main__":
    main()
