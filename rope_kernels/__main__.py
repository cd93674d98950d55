"""``python -m rope_kernels``: the ``rope-kernels`` command."""

from .cli.commands import main

if __name__ == "__main__":
    main()
