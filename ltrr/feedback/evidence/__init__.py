"""Evidence of what worked: counts by query, candidate, customer and arm, and lookup of remembered queries.

`evidence.Evidence` is the one object that a `Loop` feeds and that arms and policies read. It consists of `ledger`
(events to increments), `sums` (bounded, decayed counts) over `columns` (arrays that grow), and `lookup` (queries that
are alike). Nothing here knows an arm or a policy.
"""
