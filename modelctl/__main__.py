"""`python -m modelctl` is `modelctl`."""

from modelctl.cli.main import main

main()
