"""`python -m densepath COMMAND` is `densepath COMMAND`."""

from densepath.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
