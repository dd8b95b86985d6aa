INSERT INTO nodes (id, graph_id, position, name, block_id, input_default, constants)
VALUES (%(id)s, %(graph_id)s, %(position)s, %(name)s, %(block_id)s, %(input_default)s, %(constants)s)
ON CONFLICT (id) DO NOTHING
