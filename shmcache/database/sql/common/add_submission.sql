INSERT INTO submissions (graph_execution_id, queue) VALUES (%(id)s, %(queue)s) ON CONFLICT DO NOTHING
