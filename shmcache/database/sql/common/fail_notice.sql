UPDATE notices SET
    tries = tries + 1,
    error = %(error)s,
    due_at = clock_timestamp() + least(interval '1 second' * power(2, tries), interval '1 hour'),
    delivered_at = CASE WHEN tries + 1 >= %(most_tries)s THEN clock_timestamp() END
WHERE id = %(id)s
