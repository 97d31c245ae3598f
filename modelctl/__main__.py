"""`python -m modelctl` is `modelctl`; nothing comes from the current folder, which `-m` puts on the import path."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]

from modelctl.cli.start import main

main()
