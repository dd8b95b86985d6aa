"""The only place with SQL: connections, the embedded server, schema, queries, batch writes."""
