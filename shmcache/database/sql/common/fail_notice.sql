UPDATE notices SET
    tries = tries + 1,
    error = %(error)s,
    due_at = now() + least(interval '1 second' * power(2, tries), interval '1 hour'),
    delivered_at = CASE WHEN tries + 1 >= %(most_tries)s THEN now() END
WHERE id = %(id)s
