UPDATE accounts SET balance = given.balance, execution_count = greatest(accounts.execution_count, given.execution_count)
FROM unnest(%s::uuid[], %s::int8[], %s::int8[]) AS given (user_id, balance, execution_count)
WHERE accounts.user_id = given.user_id
