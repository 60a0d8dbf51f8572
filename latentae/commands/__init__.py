"""The commands of `latentae` other than `train`.

Each is a `Command`: its options, and the function that carries it out. Nothing heavy is imported before the
options are parsed, so that `--help` and a mistake are answered at once. The functions raise errors, and
`console.run` turns them into messages and exit codes.
"""
