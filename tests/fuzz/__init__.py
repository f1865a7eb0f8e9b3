"""A fuzzer of our own: damaged inputs of every kind, and what became of each.

`python -m tests.fuzz --inputs 10000`. An input is made of a seed, a kind and a number, so that it can be made again;
`README.md` says what is covered. What must hold: an input is taken, or refused in a sentence (`WorkbenchError`, or the
command line's own usage error), within its time and memory, and nothing is written but where it was asked for.
"""
