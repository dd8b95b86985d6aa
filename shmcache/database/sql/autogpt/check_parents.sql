-- The platform's tables have foreign keys.
SELECT FROM (SELECT %s::uuid[], %s::uuid[]) AS given WHERE false
