-- Partitions without any of them are left out by `first` and `last`, and rows before all of them where a plan that was made
-- for an empty partition reads one that has grown. Of an array that the planner sees it would work out for each key where
-- that may be, which takes longer than to look.
SELECT transaction_key, owed FROM ledger
WHERE transaction_key BETWEEN %(first)s::text AND %(last)s::text
    AND transaction_key = ANY ((SELECT %(keys)s::text[])::text[])
