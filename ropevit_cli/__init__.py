"""The console script `ropevit`: one module per subcommand.

Importing this package needs only the standard library, so that `ropevit --help` and
`ropevit doctor` work where MMDetection is absent or broken.
"""
