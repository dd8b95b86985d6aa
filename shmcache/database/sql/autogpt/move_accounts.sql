WITH given AS (
    SELECT * FROM unnest(%s::text[], %s::int8[], %s::int8[], %s::int8[], %s::bool[], %s::int8[])
        AS given (user_id, spent, owed, held, low, execution_count)
), leased AS (
    UPDATE credit_leases l
    SET amount = greatest(0, l.amount - given.spent - given.owed), version = nextval('credit_versions')
    FROM given
    WHERE l.user_id = given.user_id AND l.arena_id = %s AND given.spent + given.owed > 0
), moved AS (
    UPDATE "UserBalance" b SET balance = b.balance - given.spent
    FROM given
    WHERE b."userId" = given.user_id AND (given.spent = 0 OR b.balance >= given.spent)
    RETURNING b."userId" AS user_id
)
UPDATE account_details d SET
    debt = d.debt + given.owed,
    held = d.held + given.held,
    low_noticed = given.low,
    execution_count = greatest(d.execution_count, given.execution_count)
FROM given JOIN moved USING (user_id)
WHERE d.user_id = given.user_id
