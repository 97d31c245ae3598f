"""The pipeline: `plan` reads modelctl.toml, `planned` is a step of it, `checks` looks at it, `execution` runs it."""
