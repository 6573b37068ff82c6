"""``python -m api.cli`` runs the command ``embedserve``."""

from api.cli.main import main

if __name__ == "__main__":
    main()
