"""The command `gpt2-classifier`.

Results go to standard output, and everything else goes to standard error.
Slow imports wait until a command runs, so `--help` answers at once.
"""
