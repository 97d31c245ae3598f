"""The pipeline: `plan` reads and checks a modelctl.toml, `execution` runs what is stale of it."""
