INSERT INTO notices (id, kind, user_id, balance, amount)
SELECT gen_random_uuid(), 'low_balance', user_id, balance, %s FROM unnest(%s::uuid[], %s::int8[]) AS given (user_id, balance)
