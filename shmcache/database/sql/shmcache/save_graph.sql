INSERT INTO graphs (id, name, starts) VALUES (%(id)s, %(name)s, %(starts)s) ON CONFLICT (id) DO NOTHING
