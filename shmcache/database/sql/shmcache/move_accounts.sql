WITH given AS (
    SELECT * FROM unnest(%s::uuid[], %s::int8[], %s::int8[], %s::int8[], %s::bool[], %s::int8[])
        AS given (user_id, spent, owed, held, low, execution_count)
), leased AS (
    UPDATE credit_leases l
    SET amount = greatest(0, l.amount - given.spent - given.owed), version = nextval('credit_versions')
    FROM given
    WHERE l.user_id = given.user_id AND l.arena_id = %s AND given.spent + given.owed > 0
)
UPDATE accounts SET
    balance = accounts.balance - given.spent,
    debt = accounts.debt + given.owed,
    held = accounts.held + given.held,
    low_noticed = given.low,
    execution_count = greatest(accounts.execution_count, given.execution_count)
FROM given
WHERE accounts.user_id = given.user_id AND accounts.balance >= given.spent
