"""`python -m couponsvc`, the same as the `couponsvc` command."""

from couponsvc.cli import main

if __name__ == "__main__":
    main()
