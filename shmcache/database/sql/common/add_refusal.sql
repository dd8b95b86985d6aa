INSERT INTO notices (id, kind, user_id, graph_id, graph_execution_id, balance, amount, created_at)
VALUES (gen_random_uuid(), 'insufficient_funds', %(user_id)s, %(graph_id)s, %(graph_exec_id)s, %(balance)s, %(amount)s,
    to_timestamp(%(time)s))
ON CONFLICT DO NOTHING
