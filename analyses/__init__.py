"""Questions asked of recordings, one per file; each runs in batch and is what the page of its name shows.

A module here has a question as the first line of its docstring, a paragraph that begins "Not shown:", `NEEDS`,
`Settings`, `Result`, `run`, `tables` and `figures`. Adding an analysis is adding such a file: nothing lists them.
"""
