"""What the longer subcommands of ``koala`` do."""
