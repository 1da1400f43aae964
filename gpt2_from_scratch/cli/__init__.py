"""The command `gpt2-classifier`.

Results go to standard output, everything else to standard error.
Nothing heavy is imported before a command is chosen, so `--help` answers at once.
"""
