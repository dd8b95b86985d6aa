UPDATE accounts SET
    balance = accounts.balance - given.spent,
    debt = accounts.debt + given.owed,
    held = accounts.held + given.held,
    low_noticed = given.low,
    execution_count = greatest(accounts.execution_count, given.execution_count)
FROM unnest(%s::uuid[], %s::int8[], %s::int8[], %s::int8[], %s::bool[], %s::int8[])
    AS given (user_id, spent, owed, held, low, execution_count)
WHERE accounts.user_id = given.user_id AND accounts.balance >= given.spent
