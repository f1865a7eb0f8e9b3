"""Metrics of routing: NumPy arrays in, NumPy arrays and frozen dataclasses out.

Not here: file formats, models, tables, figures. Import the functions from their modules (`load`, `floors`, `router`,
`specialization`, `clusters`, `uncertainty`, `extremes`, `nulls`).

Axes, as suffixes of array names: T tokens, D documents, U clusters of documents (the units that are resampled),
M domains, E routed experts, K chosen per token, B resamples; `x` stands for any number of further axes in that place
(layers, data sets, two recordings), which every function that has it maps over: `counts_DxE` may be [D, E],
[D, L, E] or [D, 2, L, E]. Entropies and information are in nats.
"""
