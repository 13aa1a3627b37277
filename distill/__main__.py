"""``python -m distill`` is ``python -m distill.train``."""

from distill.train import main

if __name__ == "__main__":
    main()
