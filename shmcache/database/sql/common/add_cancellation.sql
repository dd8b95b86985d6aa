INSERT INTO cancellations (graph_execution_id) VALUES (%(id)s) ON CONFLICT DO NOTHING
