"""`python -m modelctl` is `modelctl`."""

from modelctl.cli.start import main

main()
