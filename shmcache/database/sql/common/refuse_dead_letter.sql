UPDATE dead_letters SET error = %(error)s, sqlstate = %(sqlstate)s, tries = tries + 1, last_tried_at = now()
WHERE id = %(id)s
